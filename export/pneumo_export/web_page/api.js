// Where answers come from: this browser itself. Of the names and forms of pneumo_edge/serve/page/api.js, whose place it
// takes. Films are kept by this tab alone, as long as it is open; nothing is sent anywhere.

import { pause, tab } from "./dom.js";
import { layer } from "./heat.js";
import { pointsAt, record } from "./verdict.js";

/** An answer that is none. */
export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export const hooks = { reached: (_there, _why) => {}, askForToken: async () => "", modelChanged: () => {} };

const beside = (name) => new URL(name, import.meta.url).href; // in the folder of this version
const fetched = (name) => fetch(beside(name)).then((answer) => answer.json());
const films_ = new Map(); // key -> {entry, blob, judged, waiting}
let offline = ""; // how it stands with the use without a network
const QUIET = 1000; // milliseconds after an answer in which the next question may come
const wasKept = Boolean(navigator.serviceWorker?.controller);

// Addresses of films lead nowhere after a reload: they were in the memory of the page.
if (location.hash) history.replaceState(null, "", location.pathname + location.search);

const description = fetched("model.json");
const constants = fetched("constants.json");
for (const each of [description, constants]) each.catch(() => {});

// --------------------------------------------------------------------------------------------------- the judge

// By way of a blob it is bound by the content security policy of this page, whatever the server says of its scripts.
const script = `
  const judge = import(${JSON.stringify(beside("judge.js"))});
  judge.catch((error) => setTimeout(() => { throw error; }));
  onmessage = async ({ data }) => (await judge).receive(data);
`;
// Not a module itself: LiteRT calls `importScripts`.
const worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
const waiting = new Map();
let asked = 0;

worker.addEventListener("message", ({ data: { id, answer, refused } }) => {
  const { done, fail } = waiting.get(id);
  waiting.delete(id);
  if (refused) fail(new Refusal(422, refused));
  else done(answer);
});
worker.addEventListener("error", () => {
  for (const { fail } of waiting.values()) fail(new Refusal(500, "the model has stopped, by an error or for want of memory: open the page again"));
  waiting.clear();
});

function ask(task, what = {}) {
  asked += 1;
  worker.postMessage({ id: asked, task, ...what });
  return new Promise((done, fail) => waiting.set(asked, { done, fail }));
}

ask("ready").catch((error) => hooks.reached(false, error.message));

// ------------------------------------------------------------------------------------------------- questions

/** The catalogue; what is otherwise in a browser than at a device has a word of its own there. */
export async function words() {
  const catalogue = await fetched("words.json");
  for (const [id, word] of Object.entries(catalogue.words)) {
    if (id.startsWith("browser.")) catalogue.words[id.slice("browser.".length)] = word;
  }
  return catalogue;
}

/** Nobody watches here how films change: they are those of one tab. */
export const watch = async () => null;

/** What can be chosen here, and at a device by its owner alone. */
export const settings = {
  async set({ point, prevalence }) {
    if (point) tab.set("point", point);
    if (prevalence) tab.set("prevalence", prevalence);
  },
};

async function chosen() {
  const { default_operating_point: usual, operating_points: points, calibration } = await description;
  const point = tab.get("point");
  return { point: point in points ? point : usual, prevalence: Number(tab.get("prevalence")) || calibration.prevalence };
}

export async function model() {
  const [told, { file, version, limits }, { point, prevalence }] = await Promise.all([description, constants, chosen()]);
  return {
    name: told.name,
    file,
    precision: told.files[file].precision,
    version,
    prevalence,
    operating_point: point,
    operating_points: pointsAt(told, prevalence),
    max_bytes: limits.max_bytes,
    offline,
  };
}

/** An entry as the list has it, by what is chosen now. */
async function told(key) {
  const { entry, judged } = films_.get(key) ?? {};
  if (!entry) throw new Refusal(404, "there is no such film in this tab any more");
  if (!judged) return { ...entry, record: null };
  const { point, prevalence } = await chosen();
  const found = record(judged, entry.name, await description, (await constants).file, point, prevalence);
  const { label, probability, in_distribution } = found;
  return { ...entry, label, probability, in_distribution, record: found };
}

export async function films({ limit, offset: from, sort, order, verdict, state, search, keys = [] }) {
  const all = await Promise.all([...films_.keys()].map(told));
  const found = all.filter(
    (film) =>
      (!verdict || (film.state === "answered" && (film.label ?? "none") === verdict)) &&
      (!state || film.state === state) &&
      (!search || film.key.startsWith(search.toLowerCase()) || keys.includes(film.key)),
  );
  // In the order in which they came; what has no verdict comes last by probability, whichever way round.
  if (order === "desc") found.reverse();
  if (sort === "probability") {
    const way = order === "desc" ? -1 : 1;
    const rank = ({ label, probability }) => (label ? way * probability : Infinity);
    found.sort((a, b) => (rank(a) === rank(b) ? 0 : rank(a) - rank(b)));
  }
  const page = found.slice(from, from + limit).map(({ record: _, ...entry }) => entry);
  return { films: page, total: found.length };
}

/** A film of the list, once it has been judged. */
export async function film(key) {
  await films_.get(key)?.waiting;
  return told(key);
}

let seen = { blob: null, film: null }; // what the page shows

export async function pixels(key) {
  const { blob, entry } = films_.get(key) ?? {};
  if (!blob) return null;
  if (blob === seen.blob) return seen.film;
  const film = await ask("film", { blob, name: entry.name });
  seen = { blob, film };
  return film;
}

export const preview = pixels;

export async function heatmap(key) {
  const { judged } = films_.get(key) ?? {};
  if (!judged) return null;
  const [{ files }, { file, look }] = await Promise.all([description, constants]);
  const outlines = typeof files[file].region_threshold === "number";
  return createImageBitmap(layer(judged.heatmap, judged.width, judged.height, outlines, look));
}

export async function hand(file, progress) {
  progress(1);
  await ask("known", { blob: file, name: file.name });
  const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const entry = {
    key,
    name: file.name,
    source: "page",
    received: new Date().toISOString(),
    state: "received",
    label: null,
    probability: null,
    in_distribution: null,
    error: null,
    accession: null,
    patient_id: null,
    sendings: [],
  };
  films_.set(key, { entry, blob: file });
  begin(key);
  return entry;
}

function begin(key) {
  const film = films_.get(key);
  const { entry, blob } = film;
  entry.state = "received";
  film.waiting = ask("judge", { blob, name: entry.name }).then(
    (judged) => {
      film.judged = judged;
      entry.state = "answered";
    },
    (error) => {
      film.judged = null;
      Object.assign(entry, { state: "failed", error: error.message });
    },
  );
}

export async function remove(key) {
  if (films_.get(key)?.blob === seen.blob) seen = { blob: null, film: null };
  films_.delete(key);
}

export const rejudge = async (key) => begin(key);
export const resend = async () => {};

// ---------------------------------------------------------------------------------- the page without a network

function tellOffline(text) {
  offline = text;
  hooks.modelChanged();
}

async function keep() {
  // At a first visit not before the first film has been judged: all files are fetched for that.
  if (!wasKept) {
    await ask("ready").catch(() => {});
    do await pause(QUIET);
    while (waiting.size);
  }
  if (!navigator.serviceWorker) {
    tellOffline("this browser cannot keep the page: without a network it cannot be opened");
    return;
  }
  navigator.serviceWorker.addEventListener("message", ({ data }) => {
    // A page that is kept already goes on being kept.
    if (!navigator.serviceWorker.controller) {
      tellOffline(
        data === "QuotaExceededError"
          ? "this browser has no room to keep the page: without a network it cannot be opened"
          : "not all of the page could be fetched: without a network it cannot be opened",
      );
    }
  });
  try {
    const registration = await navigator.serviceWorker.register("service-worker.js", { updateViaCache: "none" });
    registration.addEventListener("updatefound", () => follow(registration));
    follow(registration);
    if (registration.active) await tellKept(registration);
  } catch {
    tellOffline("this browser cannot keep the page: without a network it cannot be opened");
  }
}

function follow(registration) {
  const { installing: worker, active } = registration;
  worker?.addEventListener("statechange", () => {
    // The first one is activated at once. A later one waits, but what it has fetched is there.
    if (worker.state === (active ? "installed" : "activated")) tellKept(registration);
  });
}

/** Says which version is kept: this page, or one that has come since. */
async function tellKept({ scope }) {
  const page = await (await caches.open(`pneumo ${scope}`)).match(`${scope}index.html`);
  if (!page) return;
  const same = (await page.text()).includes(`"${import.meta.url.split("/").at(-2)}/`);
  tellOffline(
    same
      ? "this page also opens without a network"
      : "a newer version has been fetched: it is used when the page is opened again",
  );
}

keep();
