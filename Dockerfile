# An exported model behind OpenAI's API, on a CPU, without torch:
#   plume export MODEL out && docker build -t plume . && docker run -p 8000:8000 -v ./out:/model:ro plume
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 plume
RUN --mount=type=bind,target=/source,rw \
    pip install --no-cache-dir --constraint /source/constraints.txt '/source[serving-runtime]'

USER plume
WORKDIR /home/plume
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["plume", "serve", "--runtime", "/model", "--host", "0.0.0.0", "--port", "8000"]
