FROM python:3.12-slim
# TensorBoard imports pkg_resources, which later setuptools no longer have.
RUN pip install --no-cache-dir "tensorboard>=2.20,<2.22" "setuptools<81"
USER nobody
EXPOSE 6006
CMD ["tensorboard", "--logdir", "/runs", "--bind_all", "--port", "6006"]
