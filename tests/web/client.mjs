// A web page's client that knows nothing of ours but the descriptors of the protos: connect-web over grpc-web.
//
//   client.mjs DESCRIPTORS URL ALLOWED-ORIGIN IMAGE IMAGE…
//
// No code is generated: the services are read from the descriptors. Prints one JSON object of what it saw;
// tests/foreign/web.rs judges it.

import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary, fromJson, toJson } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

const [descriptors, baseUrl, origin, ...files] = process.argv.slice(2);
const images = files.map((file) => new Uint8Array(readFileSync(file)));
const noImage = new TextEncoder().encode("no image");

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const service = registry.getService("sightline.ingest.v1.IngestService");

// google/rpc/error_details.proto, as far as it is read here.
const string = (name, number) => ({ name, jsonName: name, number, type: "TYPE_STRING", label: "LABEL_OPTIONAL" });
const errorInfo = createFileRegistry(
  fromJson(FileDescriptorProtoSchema, {
    name: "google/rpc/error_details.proto",
    package: "google.rpc",
    syntax: "proto3",
    messageType: [{ name: "ErrorInfo", field: [string("reason", 1), string("domain", 2)] }],
  }),
  () => undefined,
).getMessage("google.rpc.ErrorInfo");

/** What a browser does by itself: says which page calls. */
const fromOrigin = (next) => (request) => {
  request.header.set("origin", origin);
  return next(request);
};

const transport = createGrpcWebTransport({ baseUrl, interceptors: [fromOrigin] });
const client = createClient(service, transport);
const frame = (image, fields) => ({ userId: "web", application: "connect-web", image, ...fields });

async function unary() {
  const ids = [crypto.randomUUID(), crypto.randomUUID()];
  const headers = {};
  const onHeader = (header) => Object.assign(headers, Object.fromEntries(header));
  const classify = (frameId) => client.classify({ frame: frame(images[0], { frameId }) }, { onHeader });
  const [first, repeat] = [await classify(ids[0]), await classify(ids[1])];
  const json = (answer) => toJson(service.method.classify.output, answer).verdict;
  return { ids, first: json(first), repeat: json(repeat), headers };
}

async function batch() {
  const answers = [];
  const frames = [...images, noImage].map((image) => frame(image));
  for await (const answer of client.classifyBatch({ frames })) {
    answers.push({ index: answer.index, ...toJson(service.method.classifyBatch.output, answer) });
  }
  return answers.sort((one, other) => one.index - other.index);
}

async function failure() {
  try {
    await client.classify({ frame: frame(noImage) });
    return { code: "OK" };
  } catch (error) {
    const seen = ConnectError.from(error);
    const info = seen.details.find((detail) => detail.type === errorInfo.typeName);
    return {
      code: Code[seen.code],
      message: seen.rawMessage,
      info: toJson(errorInfo, fromBinary(errorInfo, info.value)),
    };
  }
}

/** The question a browser asks before it lets a page of `from` call. */
async function preflight(from) {
  const answer = await fetch(`${baseUrl}/${service.typeName}/Classify`, {
    method: "OPTIONS",
    headers: {
      origin: from,
      "access-control-request-method": "POST",
      "access-control-request-headers": "authorization,content-type,grpc-timeout,x-grpc-web,x-user-agent",
    },
  });
  await answer.arrayBuffer();
  const wanted = ([name]) => name.startsWith("access-control-");
  return { status: answer.status, headers: Object.fromEntries([...answer.headers].filter(wanted)) };
}

console.log(
  JSON.stringify({
    unary: await unary(),
    batch: await batch(),
    bad: await failure(),
    allowed: await preflight(origin),
    stranger: await preflight("https://stranger.example"),
  }),
);
