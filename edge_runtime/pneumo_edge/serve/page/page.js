// The page of pneumo-serve: hands in films, shows one with its answer, lists the recent ones. Plain JavaScript, loads
// nothing from elsewhere. Every address is relative, so that the page also works below a path of a reverse proxy.

const $ = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

const LIST_EVERY = 3000; // milliseconds
const LOOK_EVERY = 250;
const MOST_TRIES = 8; // of a device that says it is busy

// ------------------------------------------------------------------------------------------------ the interface

/** An answer that is none. `status` is 0 where the device did not answer at all. */
class Refusal extends Error {
  constructor(status, text, seconds = 1) {
    super(text);
    this.status = status;
    this.seconds = seconds; // after which to come again
  }
}

let token = "";
try {
  token = sessionStorage.getItem("token") ?? "";
} catch {
  // A browser that is told to keep nothing.
}
const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

function refusal(status, text, retryAfter) {
  let said = "";
  try {
    said = JSON.parse(text).error;
  } catch {
    // A proxy in between answers in its own words.
  }
  return new Refusal(status, said || `The device answered ${status}.`, Number(retryAfter) || 1);
}

async function ask(path) {
  let answer;
  try {
    answer = await fetch(path, { headers: headers() });
  } catch {
    throw new Refusal(0, "The device does not answer.");
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
    request.upload.onprogress = (event) => progress(event.loaded / event.total);
    request.onerror = () => fail(new Refusal(0, "The device does not answer."));
    request.onload = () =>
      request.status === 202
        ? done(JSON.parse(request.responseText))
        : fail(refusal(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    const form = new FormData();
    form.append("file", file);
    request.send(form);
  });
}

/** Calls again what was refused for want of a token, once there is one, and what met a busy device, a few times. */
async function patiently(call, busy = () => {}) {
  for (let tries = 1; ; tries += 1) {
    try {
      const value = await call();
      online();
      return value;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status) online();
      if (error.status === 401) await newToken();
      else if (error.status === 429 && tries < MOST_TRIES) {
        busy(error.seconds);
        await pause(error.seconds * 1000);
      } else throw error;
    }
  }
}

// ---------------------------------------------------------------------------------------------------- the token

let asking = null;

/** Asks for the token; everybody who needs it waits for the same answer. */
function newToken() {
  asking ??= new Promise((done) => {
    const wrong = Boolean(token);
    $("ask-why").textContent = wrong
      ? "That was not the token of this device. Please try again."
      : "Whoever set it up can tell you. The browser forgets it when this tab is closed.";
    $("ask-why").classList.toggle("wrong", wrong);
    $("token").value = "";
    $("ask").showModal();
    $("ask").onclose = () => {
      asking = null;
      token = $("token").value.trim();
      done();
      sessionStorage.setItem("token", token);
    };
  });
  return asking;
}

// Nothing works without it: Escape does not close the question.
$("ask").addEventListener("cancel", (event) => event.preventDefault());

// -------------------------------------------------------------------------------------------------------- words

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const chance = (p) => (p >= 0.9995 ? "over 99.9 %" : p < 0.0005 ? "under 0.1 %" : percent(p));
const short = (key) => key.slice(0, 8);

function clock(received, long = false) {
  const when = new Date(received);
  const time = { hour: "2-digit", minute: "2-digit" };
  const day = { day: "numeric", month: "short", ...(long ? { year: "numeric" } : {}) };
  const today = when.toDateString() === new Date().toDateString();
  return when.toLocaleString("en-GB", today && !long ? time : { ...day, ...time });
}

/** Shape and word for what is known of a film. */
function outcome(film) {
  if (film.state === "received") return ["received", "Waiting"];
  if (film.in_distribution === null) return ["failed", "Not judged"];
  return { PNEUMONIA: ["PNEUMONIA", "Pneumonia"], NORMAL: ["NORMAL", "Normal"] }[film.label] ?? ["withheld", "No verdict"];
}

const unsent = (film) => film.error && film.in_distribution !== null;

function origin(film) {
  const source = film.source === "dicom" ? "DICOM" : "upload";
  const answer = film.state === "sent" ? ", answer sent" : unsent(film) ? ", answer not sent" : "";
  return `${short(film.key)}, ${source}${answer}`;
}

/** A sentence of the device as one; a name at its beginning stays as it is. */
const sentence = (text) =>
  (/^[a-z]+ /.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text) + (/[.?]$/.test(text) ? "" : ".");

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function shape(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "use"));
  svg.firstChild.setAttribute("href", `#${name}`);
  return svg;
}

const pairs = (list) => list.flatMap(([name, value]) => [element("dt", name), element("dd", value)]);

// ------------------------------------------------------------------------------------------------------ the film

let current = ""; // key of the film that is shown or waited for
let pictures = []; // addresses of the blobs that are on show

/** Shows one of the four things that can stand where the film is: invite, wait, broken or figure. */
function stage(shown) {
  for (const id of ["invite", "wait", "broken", "figure"]) $(id).hidden = id !== shown;
  document.title = "pneumo";
  document.body.dataset.state = { invite: "empty", wait: "busy", broken: "broken", figure: "shown" }[shown];
  $("paper").hidden = true;
  $("blend").hidden = true;
  $("answer").hidden = true;
  $("choose").textContent = shown === "invite" ? "Choose a film" : "Another film";
}

function busy(text, share) {
  if ($("wait").hidden) stage("wait");
  $("doing").textContent = text;
  if (share === undefined) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

function broken(title, why, again = null) {
  stage("broken");
  $("broken-title").textContent = title;
  $("broken-why").textContent = why;
  $("again").hidden = !again;
  $("again").onclick = again;
  announce(`${title}. ${why}`);
}

const announce = (text) => ($("live").textContent = text);

async function picture(path) {
  try {
    return URL.createObjectURL(await (await ask(path)).blob());
  } catch (error) {
    if (error instanceof Refusal && error.status === 404) return "";
    throw error;
  }
}

/** Opens a film of the journal; waits for its judgement where it has none yet. */
async function open(key, byHand = false) {
  current = key;
  if (location.hash !== `#${key}`) history.pushState(null, "", `#${key}`);
  mark();
  for (;;) {
    try {
      const film = await patiently(async () => (await ask(`v1/films/${key}`)).json());
      if (current !== key) return;
      if (film.state === "received") {
        busy("Judging");
      } else {
        // A heatmap without a verdict would be taken for one.
        const names = !film.record ? [] : film.record.label ? ["film.png", "heatmap.png"] : ["film.png"];
        const found = await patiently(() => Promise.all(names.map((name) => picture(`v1/films/${key}/${name}`))));
        if (current === key) show(film, found, byHand);
        else found.forEach((address) => URL.revokeObjectURL(address));
        list();
        return;
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (current !== key) return;
      if (error.status) {
        broken("This film cannot be shown", sentence(error.message));
        return;
      }
      offline();
      await pause(LIST_EVERY);
    }
    await pause(LOOK_EVERY);
    if (current !== key) return;
  }
}

function show(film, [picture, heatmap], byHand) {
  pictures.forEach((address) => URL.revokeObjectURL(address));
  pictures = [picture, heatmap].filter(Boolean);
  if (!picture) {
    broken(film.record ? "The picture of this film is gone" : "This film could not be judged", "");
  } else {
    stage("figure");
    for (const id of ["film", "paper-film"]) $(id).src = picture;
    for (const id of ["heatmap", "paper-heatmap"]) $(id).src = heatmap || picture;
    $("film").alt = $("paper-film").alt = `Film ${short(film.key)}`;
    $("blend").hidden = $("paper").hidden = !heatmap;
    const said = marks(film.record?.region);
    $("colours").hidden = Boolean(said);
    $("outlined").textContent = said;
    $("paper-caption").textContent = said || "With heatmap: evidence for pneumonia in colour, a line at half of the strongest";
    blend(heatmap ? wanted : 0);
  }
  answer(film);
  document.title = `${$("word").textContent}, film ${short(film.key)}, pneumo`;
  if (byHand) {
    if ($("viewer").getBoundingClientRect().top < 0) $("viewer").scrollIntoView();
    $("verdict").focus({ preventScroll: true });
  } else announce(spoken(film));
}

function answer(film) {
  const [form, word] = outcome(film);
  const { record } = film;
  $("answer").hidden = false;
  $("shape").setAttribute("href", `#${form}`);
  $("word").textContent = word;
  $("verdict").querySelector(".kicker").hidden = !record;

  $("odds").hidden = !record?.label;
  if (record?.label) {
    const { probability, threshold, operating_point: point } = record;
    $("share").textContent = chance(probability);
    $("point").textContent = `Pneumonia from ${percent(threshold)} (${point})`;
    $("scale").style.setProperty("--at", `${100 * probability}%`);
    $("scale").style.setProperty("--cut", `${100 * threshold}%`);
    $("scale").setAttribute("aria-label", `Scale from 0 to 100 %: the probability of pneumonia is ${chance(probability)}; `
      + `the operating point ${point} lies at ${percent(threshold)}`);
  }

  const remarks = record ? record.warnings : film.error ? [film.error] : [];
  const sending = unsent(film) ? [`the answer has not been sent: ${film.error}`] : [];
  $("reasons").hidden = !(remarks.length + sending.length);
  $("reasons-title").textContent = !record ? "Why" : record.label ? "Please note" : "Why the verdict is withheld";
  $("remarks").replaceChildren(
    ...[...remarks, ...sending].map((text) => {
      const item = element("li");
      item.append(shape("remark"), element("span", sentence(text)));
      return item;
    }),
  );

  $("facts").replaceChildren(
    ...pairs([
      ["Film", short(film.key)],
      ["Received", `${clock(film.received, true)}, ${film.source === "dicom" ? "over DICOM" : "by upload"}`],
      ...(film.state === "sent" ? [["Answer", "sent to the PACS"]] : []),
      ...(record ? [["Model", record.model], ["File", record.file]] : []),
    ]),
  );
}

/** What the line in the film is; nothing where a model gives colours instead. */
function marks(region) {
  if (!region) return "";
  if (!region.polygons.length) return "No region stands out.";
  return `Outlined: the region that stands out, ${percent(region.area)} of the film. `
    + `Strongest local probability ${percent(region.strongest)}.`;
}

/** The answer as one is told it. */
function spoken(film) {
  if (!film.record) return `The film could not be judged. ${sentence(film.error ?? "")}`;
  const why = film.record.warnings.join("; ");
  if (!film.record.label) return `No verdict. It is withheld because ${why}.`;
  return `The model says ${film.record.label.toLowerCase()}. Probability of pneumonia ${chance(film.record.probability)}.`
    + (why ? ` Please note: ${why}.` : "");
}

/** Lays so much of the heatmap over the film, in percent. */
function blend(mix) {
  $("mix").value = mix;
  $("heatmap").style.opacity = mix / 100;
  $("mix").setAttribute("aria-valuetext", mix ? `${mix} % heatmap` : "film alone");
}
let wanted = Number($("mix").value);
$("mix").addEventListener("input", () => {
  wanted = Number($("mix").value);
  blend(wanted);
});

// ------------------------------------------------------------------------------------------------- new films

let handingIn = Promise.resolve();

/** Hands in files, one after the other, and opens the first. */
function take(files) {
  const all = [...files];
  if (all.length) handingIn = handingIn.then(() => takeNow(all));
}

async function takeNow(all) {
  const refused = [];
  for (const [i, file] of all.entries()) {
    $("batch").textContent = all.length > 1 ? `Sending ${i + 1} of ${all.length}` : "";
    const why = await hand(file, i === 0);
    if (why) refused.push(why);
  }
  $("batch").textContent = refused.join(" ");
}

/** Sends one film. Returns why it was refused, where that is not shown in place of the film. */
async function hand(file, first) {
  if (first) {
    current = "";
    history.replaceState(null, "", location.pathname + location.search);
    mark();
    busy("Sending", 0);
    announce("Sending the film");
  }
  const awaited = () => first && current === "";
  const say = (text, share) => awaited() && busy(text, share);
  try {
    if (file.size > largest) throw new Refusal(413, `${file.name} is larger than ${largest >> 20} MB: scale it down`);
    const entry = await patiently(
      () => send(file, (share) => say(share < 1 ? "Sending" : "Judging", share < 1 ? share : undefined)),
      (seconds) => say(`The device is busy. Trying again in ${seconds} s`),
    );
    if (awaited()) open(entry.key);
    else list();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (!error.status) offline();
    if (!awaited()) return sentence(error.message);
    const mend = ![413, 422].includes(error.status);
    const why = error.status ? error.message : "The device does not answer. Is it on, and is this computer in its network?";
    broken(mend ? "The film could not be sent" : "This film cannot be taken", sentence(why), mend ? () => take([file]) : null);
  }
  return "";
}

for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    take($(input).files);
    $(input).value = ""; // so that the same file can be chosen again
  });
}

const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dragged");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragged"));
addEventListener("drop", (event) => {
  document.body.classList.remove("dragged");
  if (!holdsFiles(event)) return;
  event.preventDefault();
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => take(event.clipboardData.files));
$("print").addEventListener("click", () => print());

// ------------------------------------------------------------------------------------------- the recent films

function offline() {
  // Said once, and not at each try.
  if (!$("banner").hidden) return;
  $("banner").textContent = "The device does not answer. This page tries again by itself.";
  $("banner").hidden = false;
}

function online() {
  $("banner").hidden = true;
}

/** Draws the list anew; what has not changed stays, and with it the focus. */
async function list() {
  const { films } = await patiently(async () => (await ask("v1/films")).json());
  $("none").hidden = films.length > 0;
  const rows = new Map([...$("films").children].map((row) => [row.dataset.key, row]));
  let opened = false;
  films.forEach((film, i) => {
    const row = rows.get(film.key) ?? newRow(film.key);
    rows.delete(film.key);
    const state = JSON.stringify(film);
    if (row.dataset.state !== state) {
      opened ||= film.key === current && Boolean(row.dataset.state);
      row.dataset.state = state;
      const [form, word] = outcome(film);
      row.firstChild.replaceChildren(
        shape(form),
        element("span", word, { class: "what" }),
        element("time", clock(film.received), { datetime: film.received }),
        element("span", origin(film), { class: "more" }),
      );
    }
    if ($("films").children[i] !== row) $("films").insertBefore(row, $("films").children[i] ?? null);
  });
  rows.forEach((row) => row.remove());
  mark();
  // What is told of the film that is open has changed as well: its answer has reached the PACS, say.
  if (opened && !$("answer").hidden) {
    const film = await patiently(async () => (await ask(`v1/films/${current}`)).json());
    if (film.key === current) answer(film);
  }
}

function newRow(key) {
  const row = element("li");
  row.dataset.key = key;
  row.append(element("button", "", { type: "button" }));
  row.firstChild.addEventListener("click", () => open(key, true));
  return row;
}

function mark() {
  for (const row of $("films").children) {
    if (row.dataset.key === current) row.firstChild.setAttribute("aria-current", "true");
    else row.firstChild.removeAttribute("aria-current");
  }
}

async function keepListing() {
  for (;;) {
    if (!document.hidden) {
      try {
        await list();
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        if (!error.status) offline();
      }
    }
    await pause(LIST_EVERY);
  }
}

// --------------------------------------------------------------------------------------------------- the start

let largest = Infinity; // bytes

async function tellOfModel() {
  const model = await patiently(async () => (await ask("v1/model")).json());
  largest = model.max_bytes;
  const point = model.operating_points[model.operating_point];
  const range = ({ value, low, high }) => `${percent(value)} (${percent(low).slice(0, -2)} to ${percent(high)})`;
  $("model-line").textContent =
    `${model.name}, ${model.precision}. It gives a verdict on frontal chest films, and withholds it where a picture looks like none.`;
  $("model").replaceChildren(
    ...pairs([
      ["Pneumonia from", `${percent(point.threshold)} (${model.operating_point})`],
      ["Sensitivity", range(point.sensitivity)],
      ["Specificity", range(point.specificity)],
      ["Measured on", "the films it was validated with, with 95 % intervals"],
      ["Version", `pneumo ${model.version}, ${model.file}`],
    ]),
  );
}

function follow() {
  const key = location.hash.slice(1);
  if (/^[0-9a-f]{32}$/.test(key)) open(key);
  else if (current) {
    current = "";
    stage("invite");
    mark();
  }
}
addEventListener("popstate", follow);

follow();
tellOfModel().catch(offline);
keepListing();
