# The service and the operator's commands. docs/deploy.md explains how to run the image.
# Debian is pinned by version: a digest would pin its security holes too. Deployed images have their own tags.
FROM debian:13-slim AS build

RUN apt-get update \
  && apt-get install --yes --no-install-recommends python3-venv postgresql-client-17 \
  && python3 -m venv /venv

WORKDIR /app
COPY requirements-service.txt ./
RUN /venv/bin/pip install --no-cache-dir --no-compile --only-binary :all: --require-hashes --requirement requirements-service.txt

COPY pyproject.toml README.md ./
COPY service service
COPY scripts scripts
# Keeps the descriptions of the two AWS services that backups need; all the others take 28 MB.
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
  && /venv/bin/pip uninstall --yes setuptools pip \
  && find /venv/lib/python3.13/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts -exec rm -r {} + \
  && python3 -m compileall -q -x 'botocore|boto3|pygments|lib2to3' /venv/lib service scripts

FROM debian:13-slim

# PostgreSQL's programs need libpq5 and libreadline8t64. Installing their own package would also install Perl.
RUN apt-get update \
  && apt-get upgrade --yes \
  && apt-get install --yes --no-install-recommends ca-certificates libpq5 libreadline8t64 python3 \
  && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/*

COPY --from=build /usr/lib/postgresql/17/bin/pg_dump /usr/lib/postgresql/17/bin/pg_restore /usr/lib/postgresql/17/bin/psql /usr/lib/postgresql/17/bin/
COPY --from=build /venv /venv
COPY --from=build /app /app
COPY gunicorn.conf.py /app/
COPY migrations /app/migrations
COPY functions /app/functions
COPY policies /app/policies

ARG RELEASE
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOME=/tmp RELEASE=$RELEASE

WORKDIR /app
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\", 8000)}/healthz', timeout=4)"]
CMD ["gunicorn"]
