// Runs once, when the volume of MongoDB is new: the users of the database of experiments.
const database = db.getSiblingDB("sacred");
database.createUser({ user: "neomesh", pwd: process.env.WRITER_PASSWORD, roles: [{ role: "readWrite", db: "sacred" }] });
database.createUser({ user: "omniboard", pwd: process.env.READER_PASSWORD, roles: [{ role: "read", db: "sacred" }] });
