# `cm3 serve` on CPUs: not root, and nothing is written but to /tmp.
#   docker build -t cm3 .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL -p 8000:8000 -v "$PWD/keys.txt:/keys.txt:ro" cm3
# Options behind the image's name go to `cm3 serve`, for example --model /models/mine with -v ...:/models:ro.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md constraints.txt ./
COPY cm3 cm3
COPY tokenizer_image tokenizer_image
RUN python -m venv /opt/cm3 \
 && /opt/cm3/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    --constraint constraints.txt ".[serve]"

FROM python:3.11-slim
COPY --from=build /opt/cm3 /opt/cm3
RUN useradd --no-create-home --uid 10001 cm3
USER cm3
ENV PATH=/opt/cm3/bin:$PATH HOME=/tmp HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
HEALTHCHECK --start-period=30s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["cm3", "serve", "--host", "0.0.0.0", "--api-key-file", "/keys.txt"]
