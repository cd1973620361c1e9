// Where answers come from: the HTTP interface of pneumo-serve. Nothing here is about how they look, and nothing else
// asks the device: a page that judges by itself has another module of these names. Every address is relative, so that
// the page also works below a path of a reverse proxy.

import { pause, tab } from "./dom.js";

const MOST_TRIES = 8; // of a device that says it is busy
const MOST_KEYS = 100; // in one address

/** An answer that is none. `status` is 0 where the device did not answer at all. */
export class Refusal extends Error {
  constructor(status, text, seconds = 1) {
    super(text);
    this.status = status;
    this.seconds = seconds; // after which to come again
  }
}

/** What the page is told while it waits: the device is reached or not (and why, where that is known), it asks for a token,
 * what is told of the model has changed. */
export const hooks = { reached: (_there, _why = "") => {}, askForToken: async (_wrong) => "", modelChanged: () => {} };

/** What can be chosen on the page: nothing, at a device that somebody has set up. */
export const settings = null;

// ------------------------------------------------------------------------------------------------- questions

export const words = async () => (await ask("words.json")).json();
export const watch = () => patiently(async () => (await ask("v1/watch")).json());
export const model = () => patiently(async () => (await ask("v1/model")).json());

/** Films of the list, and how many there are in all. `wanted` has limit and offset, sort and order, and where they are
 * asked for verdict, state, search, and keys of films that the search finds whatever it is. */
export function films({ keys = [], ...wanted }) {
  const query = new URLSearchParams(wanted);
  for (const key of keys.slice(-MOST_KEYS)) query.append("key", key);
  return patiently(async () => (await ask(`v1/films?${query}`)).json());
}

export const film = (key) => patiently(async () => (await ask(`v1/films/${key}`)).json());

/** The film as it is, {width, height, values, levels, low, high}: values from dark to light, and the window in which
 * the model sees it; null where there is none. */
export const pixels = (key) => there(async () => parsePgm(await (await ask(`v1/films/${key}/film.pgm`)).arrayBuffer()));

/** The film at the size of a screen, at once; as above, with 256 levels. */
export const preview = (key) => there(async () => fromBitmap(await bitmap(`v1/films/${key}/film.png`)));

/** The evidence in colour, to be laid over the film. */
export const heatmap = (key) => there(() => bitmap(`v1/films/${key}/heatmap.png`));

/** Hands in a film, without the name of its file. Tells how much of it has gone, and how long a busy device asks to wait. */
export function hand(file, progress, busy) {
  return patiently(() => send(file, progress), busy);
}

export const remove = (key) => patiently(() => ask(`v1/films/${key}`, "DELETE"));
export const rejudge = (key) => patiently(() => ask(`v1/films/${key}/rejudge`, "POST"));
export const resend = (key) => patiently(() => ask(`v1/films/${key}/resend`, "POST"));

// ----------------------------------------------------------------------------------------------- how to ask

let token = tab.get("token");
const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

function refusal(status, text, retryAfter) {
  let said = "";
  try {
    said = JSON.parse(text).error;
  } catch {
    // A proxy in between answers in its own words.
  }
  return new Refusal(status, said || "", Number(retryAfter) || 1);
}

async function ask(path, method = "GET") {
  let answer;
  try {
    answer = await fetch(path, { method, headers: headers() });
  } catch {
    throw new Refusal(0, "");
  }
  if (!answer.ok) throw refusal(answer.status, await answer.text(), answer.headers.get("Retry-After"));
  return answer;
}

/** Sends a file and tells how much of it has gone, which `fetch` cannot. */
function send(file, progress) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest();
    request.open("POST", "v1/films");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    // The bytes alone: a form would tell the name of the file, and that is often the name of a patient.
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => progress(event.loaded / event.total);
    request.onerror = () => fail(new Refusal(0, ""));
    request.onload = () =>
      request.status === 202
        ? done(JSON.parse(request.responseText))
        : fail(refusal(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    request.send(file);
  });
}

/** Calls again what was refused for want of a token, once there is one, and what met a busy device, a few times. */
async function patiently(call, busy = () => {}) {
  for (let tries = 1; ; tries += 1) {
    try {
      const value = await call();
      hooks.reached(true);
      return value;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      hooks.reached(error.status > 0);
      if (error.status === 401) await newToken();
      else if (error.status === 429 && tries < MOST_TRIES) {
        busy(error.seconds);
        await pause(error.seconds * 1000);
      } else throw error;
    }
  }
}

async function there(call) {
  try {
    return await patiently(call);
  } catch (error) {
    if (error instanceof Refusal && error.status === 404) return null;
    throw error;
  }
}

let asking = null;

/** Asks for the token; everybody who needs it waits for the same answer. */
function newToken() {
  asking ??= hooks.askForToken(Boolean(token)).then((given) => {
    asking = null;
    token = given;
    tab.set("token", token);
  });
  return asking;
}

// -------------------------------------------------------------------------------------------------- pictures

const bitmap = async (path) => createImageBitmap(await (await ask(path)).blob());

function fromBitmap(picture) {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const colours = context.getImageData(0, 0, picture.width, picture.height).data;
  const values = new Uint8Array(picture.width * picture.height);
  for (let i = 0; i < values.length; i += 1) values[i] = colours[4 * i];
  return { width: picture.width, height: picture.height, values, levels: 255, low: 0, high: 255 };
}

/** Reads a portable graymap (P5), 8 bits or 16 with the high byte first; its comment has the window. */
function parsePgm(buffer) {
  const head = new TextDecoder("latin1").decode(buffer.slice(0, 200));
  const [whole, low, high, width, height, levels] = /^P5\n# window (\S+) (\S+)\n(\d+) (\d+)\n(\d+)\n/.exec(head);
  const film = { width: +width, height: +height, levels: +levels, low: +low, high: +high };
  const bytes = new Uint8Array(buffer, whole.length);
  if (film.levels < 256) return { ...film, values: bytes };
  const values = new Uint16Array(film.width * film.height);
  for (let i = 0; i < values.length; i += 1) values[i] = (bytes[2 * i] << 8) | bytes[2 * i + 1];
  return { ...film, values };
}
