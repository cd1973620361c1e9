// Reads and judges films, in a worker of its own: the page can be used in the meantime.

import { loadAndCompile, loadLiteRt, supportsFeature, Tensor } from "./litert.js";
import { readerOf, readFilm } from "./read.js";
import { Unreadable } from "./unreadable.js";
import { contrast, objections } from "./verdict.js";

const MOST_THREADS = 4;

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

/** The first line of what an error says. */
const said = (error) => String(error?.message ?? error).split("\n")[0].slice(0, 200);

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** The model, once it has been seen to be the one that model.json describes. */
async function load() {
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD)) {
    throw new Unreadable("this browser has no WebAssembly with SIMD, which the model needs: use one of 2023 or later");
  }
  if (!crypto.subtle) {
    throw new Unreadable("this browser cannot check the model at this address: open the page over HTTPS, or as localhost");
  }
  const runtime = start();
  runtime.catch(() => {}); // it is waited for below
  const [description, constants] = await Promise.all(["model.json", "constants.json"].map(async (each) => (await file(each)).json()));
  const { file: name } = constants;
  const model = await (await file(name)).arrayBuffer();
  if (hex(await crypto.subtle.digest("SHA-256", model)) !== description.files[name]?.sha256) {
    throw new Unreadable(`${name} is not the model that model.json describes: open the page again, or build it anew with pneumo-web`);
  }
  try {
    return { run: await compiled(new Uint8Array(model), await runtime), size: description.input.size, name, ...constants };
  } catch (error) {
    if (error instanceof Unreadable) throw error;
    throw new Unreadable(`${name} is no model that LiteRT accepts (${said(error)})`);
  }
}

/** LiteRT, while the model is still on its way; gives how many threads it has. */
async function start() {
  // What it says, among other things that there is no GPU, is for its developers.
  for (const each of ["log", "info", "warn", "error"]) console[each] = () => {};
  // Its threads come with relaxed SIMD alone.
  const threads = crossOriginIsolated && (await supportsFeature("relaxedSimd"));
  self.Module = { locateFile: here, mainScriptUrlOrBlob: here("litert_wasm_threaded_internal.js") };
  try {
    await loadLiteRt(here("./"), { threads });
  } catch (error) {
    throw new Unreadable(`the runtime of the model does not start (${said(error)}): open the page again where there is a network`);
  }
  return threads ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
}

/** Takes the bytes of a model and gives what runs it: from a film to {name: {values, shape}} of all that it puts out. */
async function compiled(model, numThreads) {
  const net = await loadAndCompile(model, { accelerator: "wasm", cpuOptions: { numThreads } });
  const [{ shape }] = net.getInputDetails();
  return async (pixels) => {
    const image = new Tensor(pixels, [...shape]);
    const outputs = await net.run({ image });
    image.delete();
    const found = {};
    for (const { name, shape: of } of net.getOutputDetails()) {
      found[name] = { values: Float32Array.from(await outputs[name].data()), shape: [...of] };
      outputs[name].delete();
    }
    return found;
  };
}

const loading = load();
loading.catch(() => {});

let last = { blob: null, film: null }; // the film that was read last, as people look at it, until it is asked for

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
  const { run, name: file, limits } = await loading;
  const start = performance.now();
  const read = await readOnce(blob, name);
  const doubts = objections(read, limits);
  const between = performance.now();
  const { logit, heatmap, novelty } = await run(read.pixels);
  const done = performance.now();
  const [, height_, width_] = heatmap.shape;
  const judged = {
    logit: logit.values[0],
    novelty: novelty.values[0],
    heatmap: { width: width_, height: height_, values: heatmap.values },
  };
  const all = [judged.logit, judged.novelty, ...judged.heatmap.values];
  if (!all.every(Number.isFinite)) {
    throw new Unreadable(`${name}: ${file} gives no number for this picture: export the model again`);
  }
  const { width, height, warnings, age, view } = read;
  const milliseconds = { read: between - start, infer: done - between };
  return { ...judged, contrast: contrast(read.pixels), width, height, warnings, age, view, doubts, milliseconds };
}

/** The film at its own depth, read again where it is not the last one. It is handed over and not copied. */
async function film({ blob, name }) {
  if (blob !== last.blob) await readOnce(blob, name);
  const { film: asked } = last;
  last = { blob: null, film: null };
  return asked;
}

/** Refuses what is no film, once the model is there. */
async function known({ blob, name }) {
  await loading;
  readerOf(await bytes(blob.slice(0, 132), name), name);
}

const tasks = { judge, film, known, ready: async () => void (await loading) };
let queue = Promise.resolve();

// One after the other: a large film takes much memory.
export function receive({ id, task, ...asked }) {
  queue = queue.then(async () => {
    try {
      const answer = await tasks[task](asked);
      postMessage({ id, answer }, task === "film" ? [answer.values.buffer] : []);
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error;
      postMessage({ id, refused: error.message });
    }
  });
}
