// Run once, when the volume of MongoDB is new: who may do what in the database of the experiments.
const database = db.getSiblingDB("sacred");
database.createUser({ user: "neomesh", pwd: process.env.WRITER_PASSWORD, roles: [{ role: "readWrite", db: "sacred" }] });
database.createUser({ user: "omniboard", pwd: process.env.READER_PASSWORD, roles: [{ role: "read", db: "sacred" }] });
