// Small helpers for what stands on the page.

export const $ = (id) => document.getElementById(id);

export const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** One of the shapes that index.html defines. */
export function shape(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "use"));
  svg.firstChild.setAttribute("href", `#${name}`);
  return svg;
}

/** Terms with what they stand for; a third entry explains it in a line. */
export const pairs = (list) =>
  list.flatMap(([name, value, means]) => {
    const said = element("dd", value);
    if (means) said.append(element("span", means, { class: "means" }));
    return [element("dt", name), said];
  });

/** Lets a screen reader say it. */
export const announce = (text) => ($("live").textContent = text);

/** What a tab keeps until it is closed; in vain in a browser that is told to keep nothing. */
export const tab = storage(() => sessionStorage);
/** What the browser keeps. */
export const browser = storage(() => localStorage);

function storage(find) {
  return {
    get(name) {
      try {
        return find().getItem(name) ?? "";
      } catch {
        return "";
      }
    },
    set(name, value) {
      try {
        find().setItem(name, value);
      } catch {
        // It is full, or off: what was to be kept is forgotten sooner.
      }
    },
  };
}
