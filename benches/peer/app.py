"""The usual Python way to serve an image classifier: FastAPI under gunicorn, PIL, torch.

    gunicorn -w WORKERS -k uvicorn.workers.UvicornWorker app:app

POST an encoded image to /classify. Settings, chosen by the benchmark as what is fastest here:
PEER_MODEL    the TorchScript file
PEER_THREADS  threads of one forward pass
PEER_OFFLOAD  1: each image on a thread of the pool instead of in the event loop
"""

import io
import os

import numpy
import torch
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image

CLASSES = ["Drawing", "Hentai", "Neutral", "Porn", "Sexy"]
SIDE = 224

torch.set_num_threads(int(os.environ["PEER_THREADS"]))
offload = os.environ["PEER_OFFLOAD"] == "1"
model = torch.jit.load(os.environ["PEER_MODEL"]).eval()
app = FastAPI()


def classify(body: bytes) -> dict[str, float]:
    image = Image.open(io.BytesIO(body)).convert("RGB")
    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).unsqueeze(0).contiguous().float()
    with torch.no_grad():
        pixels = torch.nn.functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=True)
        scores = model(pixels / 255)[0]
    return dict(zip(CLASSES, scores.tolist()))


# The first calls of a TorchScript module are spent on optimising it.
with torch.no_grad():
    for _ in range(5):
        model(torch.zeros(1, 3, SIDE, SIDE))


@app.get("/health")
async def health():
    return {"worker": os.getpid()}


@app.post("/classify")
async def classify_one(request: Request):
    body = await request.body()
    return await run_in_threadpool(classify, body) if offload else classify(body)
