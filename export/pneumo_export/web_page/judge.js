// Reads and judges films, in a worker of its own: the page can be used in the meantime.

import * as ort from "./onnxruntime.js";
import { readerOf, readFilm } from "./read.js";
import { Unreadable } from "./unreadable.js";
import { objections } from "./verdict.js";

const MOST_THREADS = 4;
const OUTPUTS = ["logit", "heatmap", "novelty"];

/** The smallest module that has an instruction of 128 bits (i8x16.splat): what a browser without SIMD refuses. */
const SIMD = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11,
);

const here = (name) => new URL(name, import.meta.url).href;

async function file(name) {
  let answer;
  try {
    answer = await fetch(here(name));
  } catch {
    answer = null;
  }
  if (!answer?.ok) throw new Unreadable(`${name} cannot be fetched: open the page again where there is a network`);
  return answer;
}

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** The model, once it has been seen to be the one that model.json describes. */
async function load() {
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD)) {
    throw new Unreadable("this browser has no WebAssembly with SIMD, which the model needs: use one of 2023 or later");
  }
  if (!crypto.subtle) {
    throw new Unreadable("this browser cannot check the model at this address: open the page over HTTPS, or as localhost");
  }
  const [description, constants] = await Promise.all(["model.json", "constants.json"].map(async (each) => (await file(each)).json()));
  const { file: name } = constants;
  const model = await (await file(name)).arrayBuffer();
  if (hex(await crypto.subtle.digest("SHA-256", model)) !== description.files[name]?.sha256) {
    throw new Unreadable(`${name} is not the model that model.json describes: open the page again, or build it anew with pneumo-web`);
  }
  ort.env.wasm.wasmPaths = { wasm: here("onnxruntime.wasm") };
  ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
  ort.env.logLevel = "error";
  try {
    const session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
    return { session, size: description.input.size, name, ...constants };
  } catch (error) {
    throw new Unreadable(`${name} is no model that ONNX Runtime accepts (${String(error.message ?? error).split("\n")[0].slice(0, 200)})`);
  }
}

const loading = load();
loading.catch(() => {});

let last = { blob: null, film: null }; // the film that was read last, as people look at it

async function bytes(blob, name) {
  try {
    return new Uint8Array(await blob.arrayBuffer());
  } catch (error) {
    const gone = error.name === "NotFoundError";
    throw new Unreadable(`${name} cannot be opened: ${gone ? "it is not there any more" : "the browser may not read it"}`);
  }
}

async function readOnce(blob, name) {
  const { size, limits } = await loading;
  const read = await readFilm(await bytes(blob, name), name, size, limits);
  last = { blob, film: read.film };
  return read;
}

async function judge({ blob, name }) {
  const { session, size, name: file, limits } = await loading;
  const start = performance.now();
  const read = await readOnce(blob, name);
  const doubts = objections(read, limits);
  const between = performance.now();
  const { logit, heatmap, novelty } = await session.run(
    { image: new ort.Tensor("uint8", read.pixels, [1, size, size, 1]) },
    OUTPUTS,
  );
  const done = performance.now();
  const judged = {
    logit: logit.data[0],
    novelty: novelty.data[0],
    heatmap: { width: heatmap.dims[2], height: heatmap.dims[1], values: Float32Array.from(heatmap.data) },
  };
  const all = [judged.logit, judged.novelty, ...judged.heatmap.values];
  if (!all.every(Number.isFinite)) {
    throw new Unreadable(`${name}: ${file} gives no number for this picture: export the model again`);
  }
  const { width, height, warnings, age, view } = read;
  const milliseconds = { read: between - start, infer: done - between };
  return { ...judged, width, height, warnings, age, view, doubts, milliseconds };
}

/** The film at its own depth, read again where another has been read since. */
async function film({ blob, name }) {
  return blob === last.blob ? last.film : (await readOnce(blob, name)).film;
}

/** Refuses what is no film, once the model is there. */
async function known({ blob, name }) {
  await loading;
  readerOf(await bytes(blob.slice(0, 132), name), name);
}

const tasks = { judge, film, known, ready: async () => void (await loading) };
let queue = Promise.resolve();

// One after the other: a large film takes much memory.
addEventListener("message", ({ data: { id, task, ...asked } }) => {
  queue = queue.then(async () => {
    try {
      postMessage({ id, answer: await tasks[task](asked) });
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error;
      postMessage({ id, refused: error.message });
    }
  });
});
