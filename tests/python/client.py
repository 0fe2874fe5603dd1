"""A client that knows nothing of ours but the protos: grpcio, with stubs generated on the spot.

    client.py PROTOS HOST:PORT IMAGE IMAGE…

Prints one JSON object of what it saw; tests/foreign/python.rs judges it.
"""

import importlib
import json
import sys
import tempfile
import uuid
from importlib import resources
from pathlib import Path

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from grpc_tools import protoc

TIMEOUT = 30
SERVICE = "sightline.ingest.v1.IngestService"


def generate(protos: Path, out: str) -> None:
    """Stubs of every proto, importable afterwards."""
    files = sorted(str(file.relative_to(protos)) for file in protos.rglob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    options = [f"-I{protos}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *options, *files]) != 0:
        sys.exit("protoc refused the protos")
    sys.path.insert(0, out)


class Client:
    def __init__(self, channel: grpc.Channel, images: list[bytes]):
        self.channel = channel
        self.images = images
        self.pb = importlib.import_module("sightline.ingest.v1.ingest_pb2")
        stubs = importlib.import_module("sightline.ingest.v1.ingest_pb2_grpc")
        self.ingest = stubs.IngestServiceStub(channel)

    def frame(self, user: str, image: bytes, **fields):
        return self.pb.Frame(user_id=user, application="python", image=image, **fields)

    def classify(self, user: str, image: bytes, **fields):
        request = self.pb.ClassifyRequest(frame=self.frame(user, image, **fields))
        return self.ingest.Classify(request, timeout=TIMEOUT).verdict

    def unary(self) -> dict:
        first, second = str(uuid.uuid4()), str(uuid.uuid4())
        return {
            "ids": [first, second],
            "first": MessageToDict(self.classify("unary", self.images[0], frame_id=first)),
            "repeat": MessageToDict(self.classify("unary", self.images[0], frame_id=second)),
        }

    def batch(self) -> list:
        frames = [self.frame("batch", image) for image in [*self.images, b"no image"]]
        request = self.pb.ClassifyBatchRequest(frames=frames)
        answers = self.ingest.ClassifyBatch(request, timeout=TIMEOUT)
        return sorted((self.item(answer) | {"index": answer.index} for answer in answers), key=lambda a: a["index"])

    def stream(self) -> dict:
        """Everything is sent at once, with no regard to answers; the bad frame is in the middle."""
        images = [*self.images, b"no image", *self.images]

        def requests():
            hello = self.pb.Hello(user_id="stream", application="python")
            yield self.pb.ClassifyStreamRequest(hello=hello)
            for place, image in enumerate(images):
                frame = self.pb.StreamFrame(id=100 + place, frame=self.pb.Frame(image=image))
                yield self.pb.ClassifyStreamRequest(frame=frame)
            yield self.pb.ClassifyStreamRequest(heartbeat=self.pb.Heartbeat(number=7))

        seen = {"welcome": None, "heartbeats": [], "answers": {}}
        for answer in self.ingest.ClassifyStream(requests(), timeout=TIMEOUT):
            match answer.WhichOneof("message"):
                case "welcome":
                    seen["welcome"] = MessageToDict(answer.welcome)
                case "heartbeat":
                    seen["heartbeats"].append(answer.heartbeat.number)
                case "verdict":
                    seen["answers"][answer.verdict.id] = self.item(answer.verdict)
                case "error":
                    seen["answers"][answer.error.id] = self.item(answer.error)
        return seen

    def item(self, answer) -> dict:
        """The verdict or the error of one frame."""
        if answer.DESCRIPTOR.fields_by_name.get("verdict") and answer.HasField("verdict"):
            return {"verdict": MessageToDict(answer.verdict)}
        return {"error": MessageToDict(answer.error)}

    def failure(self, user: str, image: bytes, tries: int = 1) -> dict:
        """How the call ends, with its details read as any gRPC client would."""
        try:
            for _ in range(tries):
                self.classify(user, image)
        except grpc.RpcError as error:
            seen = {"code": error.code().name, "message": error.details()}
            for detail in rpc_status.from_call(error).details:
                for kind in (error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()):
                    if detail.Unpack(kind):
                        seen[kind.DESCRIPTOR.name] = MessageToDict(kind)
            return seen
        return {"code": "OK"}

    def health(self) -> dict:
        health = health_pb2_grpc.HealthStub(self.channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        watch = health.Watch(request, timeout=TIMEOUT)
        statuses = [health.Check(request, timeout=TIMEOUT).status, next(watch).status]
        watch.cancel()
        name = health_pb2.HealthCheckResponse.ServingStatus.Name
        return dict(zip(["check", "watch"], map(name, statuses)))

    def reflection(self) -> dict:
        database = ProtoReflectionDescriptorDatabase(self.channel)
        service = DescriptorPool(database).FindServiceByName(SERVICE)
        methods = {method.name: method.output_type.full_name for method in service.methods}
        return {"services": sorted(database.get_services()), "methods": methods}


def main() -> None:
    protos, endpoint, *files = sys.argv[1:]
    images = [Path(file).read_bytes() for file in files]
    with tempfile.TemporaryDirectory() as out, grpc.insecure_channel(endpoint) as channel:
        generate(Path(protos).resolve(), out)
        client = Client(channel, images)
        seen = {
            "unary": client.unary(),
            "batch": client.batch(),
            "stream": client.stream(),
            "bad": client.failure("bad", b"no image"),
            "greedy": client.failure("greedy", images[0], tries=21),
            "health": client.health(),
            "reflection": client.reflection(),
        }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
