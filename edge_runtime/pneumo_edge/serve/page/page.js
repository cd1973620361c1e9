// The page of pneumo-serve and pneumo-web: what stands where the film is, films that are handed in, and what follows from a click.

import { $, announce, element, pairs, pause } from "./dom.js";
import * as api from "./api.js";
import * as words from "./words.js";
import { outcome, short, spoken, write } from "./answer.js";
import { List, names } from "./list.js";
import { Viewer } from "./viewer.js";

const { t, sentence, percent } = words;
const { Refusal } = api;

const LOOK_EVERY = 250; // milliseconds
const COME_AGAIN = 3000;
const LOOK_FOR_CHANGE = 60000;

// ------------------------------------------------------------------------------------------------------ the film

let current = ""; // key of the film that is shown or waited for
let shown = null; // the film that is shown, as the device tells of it
let size = null; // of its picture
let saying = () => {}; // says once more, in another language, what stands in place of a film

const viewer = new Viewer($("figure"), $("film"), (view) => {
  $("brightness").value = Math.round(100 * view.brightness);
  $("contrast").value = Math.round(100 * view.contrast);
  $("invert").setAttribute("aria-pressed", view.inverted);
  $("zoom-out").disabled = $("zoom-fit").disabled = view.zoom <= 1;
});

/** Shows one of the four things that can stand where the film is: invite, wait, broken or figure. */
function stage(part) {
  for (const id of ["invite", "wait", "broken", "figure"]) $(id).hidden = id !== part;
  document.title = "pneumo";
  document.body.dataset.state = { invite: "empty", wait: "busy", broken: "broken", figure: "shown" }[part];
  for (const id of ["papers", "paper-marked", "blend", "light", "tools", "answer"]) $(id).hidden = true;
  saying = () => ($("choose").textContent = t(part === "invite" ? "choose" : "choose.other"));
  saying();
  viewer.clear();
  shown = size = null;
}

function busy(id, { share, ...values } = {}) {
  if ($("wait").hidden) stage("wait");
  $("doing").textContent = t(id, values);
  if (share === undefined) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

/** Says that something went wrong: the id of a title, an English sentence, and what to do about it. */
function broken(id, why, again = null) {
  stage("broken");
  const whole = saying;
  saying = () => {
    whole();
    $("broken-title").textContent = t(id);
    $("broken-why").textContent = why ? sentence(why) : "";
  };
  saying();
  $("again").hidden = !again;
  $("again").onclick = again;
  announce(`${t(id)}. ${$("broken-why").textContent}`);
}

/** Opens a film of the journal; waits for its judgement where it has none yet. */
async function open(key, byHand = false) {
  current = key;
  if (location.hash !== `#${key}`) history.pushState(null, "", `#${key}`);
  list.mark(key);
  for (;;) {
    try {
      const film = await api.film(key);
      if (current !== key) return;
      if (film.state === "received") busy("judging");
      else {
        list.renew().catch(unreached);
        await show(film, byHand);
        return;
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (current !== key) return;
      if (error.status) {
        broken("broken.show", told(error));
        return;
      }
      await pause(COME_AGAIN);
    }
    await pause(LOOK_EVERY);
    if (current !== key) return;
  }
}

/** What a refusal says, in words of the page where it has none of its own. */
const told = (error) => error.message || (error.status ? t("status", { status: error.status }) : t("no_device"));

async function show(film, byHand) {
  const { key, record } = film;
  // A heatmap without a verdict would be taken for one.
  const [picture, heatmap] = await Promise.all([
    record ? api.preview(key) : null,
    record?.label ? api.heatmap(key) : null,
  ]);
  if (current !== key) return;
  if (picture) {
    stage("figure");
    for (const id of ["tools", "light", "papers"]) $(id).hidden = false;
    $("figure").style.setProperty("--tall", picture.height / picture.width);
    viewer.show(picture, heatmap, outlines(record));
    overlays(record, heatmap);
  } else broken(record ? "broken.gone" : "broken.judge", "");
  shown = film;
  tell();
  if (byHand) {
    if ($("viewer").getBoundingClientRect().top < 0) $("viewer").scrollIntoView();
    $("verdict").focus({ preventScroll: true });
  } else announce(spoken(film));
  if (picture) await refine(film);
}

/** Takes the place of the quick picture with all that the film has. */
async function refine({ key }) {
  let film = null;
  try {
    film = await api.pixels(key);
  } catch (error) {
    // The quick picture stays: the device is busy, or has gone.
    if (!(error instanceof Refusal)) throw error;
  }
  if (!film || shown?.key !== key) return;
  viewer.refine(film);
  size = film;
  tell();
  $("figure").dataset.whole = key;
}

/** The lines of the region in shares of the film; none without a verdict. */
function outlines({ label, region }) {
  if (!label || !region) return [];
  return region.polygons.map((polygon) => polygon.map(([x, y]) => [x / region.width, y / region.height]));
}

/** What can be laid over the film. A model that says where has an outline, and its colours wait to be asked for. */
function overlays(record, heatmap) {
  $("outlined").hidden = !viewer.polygons.length;
  $("blend").hidden = !heatmap;
  for (const each of ["legend-what", "legend-none", "legend-full"]) {
    $(each).dataset.word = `${each}.${record.region ? "region" : "evidence"}`;
    $(each).textContent = t($(each).dataset.word);
  }
  blend(heatmap ? (wanted ?? (record.region ? 0 : AT_FIRST)) : 0);
}

function tell() {
  if (!shown) return;
  write(shown, names.get(shown.key), size);
  for (const id of ["film", "paper-film"]) $(id).setAttribute("aria-label", t("film.key", { key: short(shown.key) }));
  if (viewer.film) print();
  document.title = t("film.title", { verdict: t(outcome(shown)), key: short(shown.key) });
}

/** Draws what the printer gets: the film as it is, and with what the model found, where that is anything. */
function print() {
  const { record } = shown;
  const where = Boolean(record.region);
  // On paper nobody can ask for the colours: a model that has nothing else shows them there in any case.
  const mix = $("blend").hidden ? 0 : where ? wanted ?? 0 : wanted || AT_FIRST;
  $("paper-marked").hidden = !mix && !viewer.polygons.length;
  $("paper-marks-say").textContent = t(!where ? "heatmap.paper" : mix ? "region.paper.colours" : "region.paper");
  viewer.print($("paper-film"), 0, false);
  if (!$("paper-marked").hidden) viewer.print($("paper-marks"), mix, true);
}

// --------------------------------------------------------------------------------------------------- its tools

const AT_FIRST = 0.6; // of colours that are all there is
let wanted = null; // how much of the heatmap is wished for, once somebody has said so

/** Lays so much of the heatmap over the film, 0 to 1. */
function blend(mix) {
  viewer.mix = mix;
  $("mix").value = Math.round(100 * mix);
  $("mix").setAttribute("aria-valuetext", mix ? t("heatmap.share", { share: percent(mix, 0) }) : t("heatmap.none"));
  $("ramp").style.opacity = mix;
  viewer.draw();
}
$("mix").addEventListener("input", () => {
  wanted = Number($("mix").value) / 100;
  blend(wanted);
  print();
});
for (const id of ["brightness", "contrast"]) {
  $(id).addEventListener("input", () => viewer.set({ [id]: Number($(id).value) / 100 }));
}

const presses = (id, press) => $(id).addEventListener("click", press);
presses("zoom-in", () => viewer.zoomIn());
presses("zoom-out", () => viewer.zoomOut());
presses("zoom-fit", () => viewer.set({ x: 0.5, y: 0.5, zoom: 1 }));
presses("invert", () => viewer.set({ inverted: !viewer.view.inverted }));
presses("reset", () => viewer.reset());
presses("drag", () => {
  viewer.dragsLight = !viewer.dragsLight;
  $("drag").setAttribute("aria-pressed", viewer.dragsLight);
  viewer.draw();
});
presses("outlined", () => {
  viewer.outlined = !viewer.outlined;
  $("outlined").setAttribute("aria-pressed", viewer.outlined);
  viewer.draw();
});
presses("full", fill);
$("full").hidden = !document.fullscreenEnabled;
$("figure").addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() === "f" && !event.ctrlKey && !event.metaKey && document.fullscreenEnabled) fill();
});

function fill() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("viewer").requestFullscreen();
}

presses("print", () => window.print());

// ----------------------------------------------------------------------------------------- what is done to a film

/** Asks whether it is meant. */
function sure(what) {
  $("sure-title").textContent = t(`${what}.ask`);
  $("sure-why").textContent = t(`${what}.means`);
  $("sure-yes").textContent = t(what);
  $("sure").returnValue = "no";
  $("sure").showModal();
  return new Promise((done) => ($("sure").onclose = () => done($("sure").returnValue === "yes")));
}

for (const [what, call] of Object.entries({ rejudge: api.rejudge, resend: api.resend, delete: api.remove })) {
  presses(what, async () => {
    const { key } = shown;
    if (!(await sure(what))) return;
    try {
      await call(key);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      $("batch").textContent = sentence(told(error));
      return;
    }
    if (current !== key) return;
    if (what === "delete") {
      history.pushState(null, "", location.pathname + location.search);
      follow();
      announce(t("deleted"));
      $("choose").focus();
      list.renew().catch(unreached);
    } else open(key, true);
  });
}

// ------------------------------------------------------------------------------------------------- new films

let largest = Infinity; // bytes
let handingIn = Promise.resolve();

/** Hands in files, one after the other, and opens the first. */
function take(files) {
  const all = [...files];
  if (all.length) handingIn = handingIn.then(() => takeNow(all));
}

async function takeNow(all) {
  const refused = [];
  for (const [i, file] of all.entries()) {
    $("batch").textContent = all.length > 1 ? t("sending.of", { i: i + 1, n: all.length }) : "";
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
    list.mark("");
    busy("sending", { share: 0 });
    announce(t("sending.film"));
  }
  const awaited = () => first && current === "";
  const say = (...what) => awaited() && busy(...what);
  try {
    if (file.size > largest) {
      throw new Refusal(413, `${file.name} is larger than ${largest >> 20} MB: scale it down`);
    }
    const entry = await api.hand(
      file,
      (share) => (share < 1 ? say("sending", { share }) : say("judging")),
      (seconds) => say("busy", { seconds }),
    );
    names.add(entry.key, file.name);
    if (awaited()) open(entry.key);
    else list.renew().catch(unreached);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    // The device was not told its name.
    const why = told(error).replace(/^- /, `${file.name} `);
    if (!awaited()) return sentence(why);
    const mend = ![413, 422].includes(error.status);
    broken(mend ? "broken.send" : "broken.take", why, mend ? () => take([file]) : null);
  }
  return "";
}

for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
  presses(button, () => $(input).click());
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

// ---------------------------------------------------------------------------------------------- the rest of it

const list = new List(
  api.films,
  (key) => open(key, true),
  // What is told of the film that is open has changed as well: its answer has reached the PACS, say.
  async (key) => {
    if (shown?.key !== key) return;
    const film = await api.film(key);
    if (shown?.key !== key) return;
    shown = film;
    tell();
  },
);

const unreached = (error) => {
  if (!(error instanceof Refusal)) throw error;
};

api.hooks.reached = (there, why = "") => {
  $("banner").hidden = there;
  $("banner").dataset.why = why;
  $("banner").textContent = why ? sentence(why) : t("offline");
};
api.hooks.modelChanged = () => learnOfModel().catch(unreached);

api.hooks.askForToken = (wrong) =>
  new Promise((done) => {
    $("ask-why").textContent = t(wrong ? "token.wrong" : "token.why");
    $("ask-why").classList.toggle("wrong", wrong);
    $("token").value = "";
    $("ask").showModal();
    $("ask").onclose = () => done($("token").value.trim());
  });

let model = null;

async function learnOfModel() {
  model = await api.model();
  largest = model.max_bytes;
  tellOfModel();
}

let watch = null; // how the last films compare with the reference of the bundle

async function lookForChange() {
  watch = await api.watch();
  tellOfModel();
}

/** What has shifted. */
const shifted = () => (watch?.alarms ?? []).map((each) => t(`watch.${each}`)).join(", ");

/** The row on the last films; none where the bundle has no reference, or no film has come yet. */
function watching() {
  if (!watch?.known || watch.withheld === null) return [];
  const few = !Object.keys(watch.shifts).length;
  const what = shifted();
  return [
    [
      t("watch", { films: watch.films }),
      what ? t("watch.unlike", { what }) : t(few ? "watch.few" : "watch.same"),
      t("watch.shares", {
        withheld: percent(watch.withheld),
        pneumonia: percent(watch.pneumonia ?? 0),
        expected: percent(watch.expected),
      }),
    ],
  ];
}

function tellOfModel() {
  if (!model) return;
  const point = model.operating_points[model.operating_point];
  const named = words.point(model.operating_point);
  const means = words.has(`${model.operating_point}.means`) ? t(`${model.operating_point}.means`) : "";
  const range = ({ value, low, high }) =>
    t("range", { value: percent(value), low: percent(low), high: percent(high) });
  $("holds").textContent = t("prevalence.line", { prevalence: percent(model.prevalence) });
  $("changed").hidden = !shifted();
  $("changed").textContent = shifted() ? t("watch.changed", { what: shifted() }) : "";
  $("model-line").textContent = t("about.line", model);
  $("model").replaceChildren(
    ...pairs([
      [t("from"), `${percent(point.threshold)} (${named})`, means],
      [t("sensitivity"), range(point.sensitivity), t("sensitivity.means")],
      [t("specificity"), range(point.specificity), t("specificity.means")],
      [t("measured"), model.site ? t("measured.at", model) : t("measured.on")],
      // Where it can be chosen, it stands beside the choice.
      ...(api.settings ? [] : [[t("prevalence"), percent(model.prevalence), t("prevalence.means")]]),
      ...watching(),
      [t("version"), `pneumo ${model.version}, ${model.file}`],
      ...(model.offline ? [[t("offline.use"), sentence(model.offline)]] : []),
    ]),
  );
  if (api.settings) offer(model);
}

/** Offers what can be chosen. */
function offer({ operating_points: points, operating_point: point, prevalence }) {
  $("settings").hidden = false;
  $("point-choice").replaceChildren(
    ...Object.keys(points).map((name) => element("option", words.point(name), { value: name })),
  );
  $("point-choice").value = point;
  if (document.activeElement !== $("prevalence")) $("prevalence").value = Number((100 * prevalence).toFixed(1));
}

async function chooseSetting(what) {
  await api.settings.set(what);
  await learnOfModel();
  await list.renew();
  if (shown) await open(shown.key);
}
$("point-choice").addEventListener("change", () => chooseSetting({ point: $("point-choice").value }));
$("prevalence").addEventListener("change", () => {
  if ($("prevalence").reportValidity()) chooseSetting({ prevalence: $("prevalence").valueAsNumber / 100 });
});

function follow() {
  const key = location.hash.slice(1);
  if (/^[0-9a-f]{32}$/.test(key)) open(key);
  else {
    current = "";
    stage("invite");
    list.mark("");
  }
}
addEventListener("popstate", follow);

words.whenSpoken(() => {
  saying();
  if ($("banner").dataset.why) $("banner").textContent = sentence($("banner").dataset.why);
  tell();
  tellOfModel();
  if (shown) blend(viewer.mix);
});
words.learn(await api.words());
words.fillLanguages($("language"));
follow();
learnOfModel().then(lookForChange).catch(unreached);
setInterval(() => lookForChange().catch(unreached), LOOK_FOR_CHANGE);
list.keepRenewing(unreached);
