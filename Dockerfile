# The server without PyTorch. Build and run, from this folder:
#
#   docker build -t embedserve .
#   docker run -p 127.0.0.1:50051:50051 -v "$PWD/encoders:/encoders:ro" -v embedserve-data:/data embedserve
#
# encoders/ holds encoder.onnx. It is the folder that is mounted: a file would stay the old one when it is replaced.
# To read HEIC and DICOM as well: docker build --build-arg EXTRAS='[heic,medical]' -t embedserve .
# Other commands work the same: docker run --rm -v "$PWD/encoders:/encoders:ro" embedserve doctor /encoders/encoder.onnx
# The container listens on all of its addresses (HTTP on 8080), so it is -p that decides who can reach it; who may call is
# decided by tokens and certificates, if they are given.

FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY examples/NOTICE examples/fashion-mnist-sample.zip examples/
COPY embedserve embedserve
COPY training training
ARG EXTRAS=
RUN python -m venv /opt/embedserve \
    && /opt/embedserve/bin/pip install --no-cache-dir --disable-pip-version-check ".$EXTRAS"

FROM python:3.11-slim
COPY --from=build /opt/embedserve /opt/embedserve
ENV PATH=/opt/embedserve/bin:$PATH PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root.
RUN mkdir -m 700 /data && chown 10001:10001 /data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 50051 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "\
import ssl, sys; from http.client import HTTPConnection, HTTPSConnection\n\
def ask(connection): connection.request('GET', '/readyz'); return connection.getresponse().status\n\
try: status = ask(HTTPConnection('127.0.0.1', 8080, timeout=2))\n\
except Exception: status = ask(HTTPSConnection('127.0.0.1', 8080, timeout=2, context=ssl._create_unverified_context()))\n\
sys.exit(status != 200)"]
ENTRYPOINT ["embedserve"]
# It has to listen on all addresses of the container. --insecure: whether others reach them is decided outside, by -p.
CMD ["serve", "/encoders/encoder.onnx", "--data", "/data", "--host", "0.0.0.0", "--insecure"]
