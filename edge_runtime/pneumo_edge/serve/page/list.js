// The list of films: searched, sorted, filtered, page by page. It renews itself.

import { $, element, pause, shape, tab } from "./dom.js";
import { outcome, short, unsent } from "./answer.js";
import { chance, clock, t, whenSpoken } from "./words.js";

const EVERY = 3000; // milliseconds
const A_PAGE = 50; // films
const SORTS = {
  "films.newest": { sort: "received", order: "desc" },
  "films.oldest": { sort: "received", order: "asc" },
  "films.likely": { sort: "probability", order: "desc" },
  "films.unlikely": { sort: "probability", order: "asc" },
};
const FILTERS = {
  "films.all": {},
  PNEUMONIA: { verdict: "PNEUMONIA" },
  NORMAL: { verdict: "NORMAL" },
  withheld: { verdict: "none" },
  "films.failed": { state: "failed" },
  received: { state: "received" },
};

/** The names of the files that were handed in here: this tab alone knows them, and forgets them when it is closed. */
export const names = {
  known: new Map(Object.entries(JSON.parse(tab.get("names") || "{}"))),
  get: (key) => names.known.get(key) ?? "",
  add(key, name) {
    names.known.set(key, name);
    tab.set("names", JSON.stringify(Object.fromEntries(names.known)));
  },
  /** The keys of those films whose name has such a part. */
  find: (part) => [...names.known].filter(([, name]) => name.toLowerCase().includes(part.toLowerCase())).map(([key]) => key),
};

export class List {
  /** Asks `films` for what it shows, calls `open` for the film that is chosen, and `changed` when the open one has. */
  constructor(films, open, changed) {
    this.films = films;
    this.open = open;
    this.changed = changed;
    this.current = ""; // key of the film that is open
    this.from = 0;
    this.asked = 0;
    for (const [id, choices] of [["filter", FILTERS], ["sort", SORTS]]) {
      $(id).replaceChildren(...Object.keys(choices).map((value) => element("option", "", { value })));
      $(id).addEventListener("change", () => this.again());
    }
    $("search").addEventListener("input", () => this.again());
    $("previous").addEventListener("click", () => this.turn(-A_PAGE));
    $("next").addEventListener("click", () => this.turn(A_PAGE));
    whenSpoken(() => {
      for (const id of ["filter", "sort"]) for (const option of $(id).options) option.textContent = t(option.value);
      for (const row of $("films").children) row.dataset.state = "";
      if (this.asked) this.renew();
    });
  }

  again() {
    this.from = 0;
    this.renew();
  }

  turn(by) {
    this.from = Math.max(0, this.from + by);
    this.renew().then(() => $("recent-title").scrollIntoView({ block: "nearest" }));
  }

  mark(key) {
    this.current = key;
    for (const row of $("films").children) {
      if (row.dataset.key === key) row.firstChild.setAttribute("aria-current", "true");
      else row.firstChild.removeAttribute("aria-current");
    }
  }

  wanted() {
    const search = $("search").value.trim();
    const searched = search ? { search, keys: names.find(search) } : {};
    return { limit: A_PAGE, offset: this.from, ...SORTS[$("sort").value], ...FILTERS[$("filter").value], ...searched };
  }

  /** Draws the list anew; what has not changed stays, and with it the focus. Throws what `films` throws. */
  async renew() {
    const asked = (this.asked += 1);
    const wanted = this.wanted();
    const { films, total } = await this.films(wanted);
    // Something else has been asked for in the meantime.
    if (asked !== this.asked) return;
    if (!films.length && this.from) {
      this.again();
      return;
    }
    const choosing = Boolean(wanted.search || wanted.verdict || wanted.state);
    $("none").hidden = films.length > 0;
    $("none").textContent = t(choosing ? "films.unmatched" : "films.none");
    $("finding").hidden = !total && !choosing;
    $("pages").hidden = total <= A_PAGE;
    $("previous").disabled = !this.from;
    $("next").disabled = this.from + films.length >= total;
    $("shown").textContent = t("films.shown", { from: this.from + 1, to: this.from + films.length, total });
    this.draw(films);
  }

  draw(films) {
    const list = $("films");
    const rows = new Map([...list.children].map((row) => [row.dataset.key, row]));
    let changed = false;
    films.forEach((film, i) => {
      const row = rows.get(film.key) ?? this.newRow(film.key);
      rows.delete(film.key);
      const state = JSON.stringify(film);
      if (row.dataset.state !== state) {
        changed ||= film.key === this.current && Boolean(row.dataset.state);
        row.dataset.state = state;
        fill(row.firstChild, film);
      }
      if (list.children[i] !== row) list.insertBefore(row, list.children[i] ?? null);
    });
    rows.forEach((row) => row.remove());
    this.mark(this.current);
    if (changed) this.changed(this.current);
  }

  newRow(key) {
    const row = element("li");
    row.dataset.key = key;
    row.append(element("button", "", { type: "button" }));
    row.firstChild.addEventListener("click", () => this.open(key));
    return row;
  }

  /** Renews it every few seconds as long as somebody can see it; `failed` is told what went wrong. */
  async keepRenewing(failed) {
    for (;;) {
      if (!document.hidden) await this.renew().catch(failed);
      await pause(EVERY);
    }
  }
}

function fill(button, film) {
  const form = outcome(film);
  const what = film.label ? `${t(form)} ${chance(film.probability)}` : t(form);
  button.replaceChildren(
    shape(form),
    element("span", what, { class: "what" }),
    element("time", clock(film.received), { datetime: film.received }),
    element("span", origin(film), { class: "more" }),
  );
}

function origin(film) {
  const source = film.source === "page" ? t("upload") : "DICOM";
  const answer = film.state === "sent" ? t("sent") : unsent(film).length ? t("unsent") : "";
  const whose = [names.get(film.key), film.accession, film.patient_id];
  return [...whose, short(film.key), source, answer].filter(Boolean).join(", ");
}
