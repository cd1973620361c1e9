// A film on a canvas: its own pixels through a window that can be moved, zoomed and turned to negative, with heatmap and
// outline over it. Knows nothing of where films come from.

const MOST_ZOOM = 32;
const STEP = 1.25; // of a key or a button
const LINE = "#ffb000"; // that of pneumo_edge/overlay.py
const LINE_EDGE = "rgb(0 0 0 / .65)";

/** How a film is looked at. The centre is in shares of the film, zoom 1 shows all of it. */
const AT_FIRST = { x: 0.5, y: 0.5, zoom: 1, brightness: 0, contrast: 0, inverted: false };

export class Viewer {
  /** Draws on `canvas`, takes mouse, fingers and keys from `ground` around it, and calls `changed` after each change. */
  constructor(ground, canvas, changed) {
    this.ground = ground;
    this.canvas = canvas;
    this.changed = changed;
    this.film = null;
    this.view = { ...AT_FIRST };
    this.mix = 0; // of the heatmap, 0 to 1
    this.outlined = true;
    this.dragsLight = false;
    new ResizeObserver(() => this.draw()).observe(ground);
    listen(this);
  }

  /** Shows a film; `heatmap` is a bitmap or null, `polygons` are closed lines in shares of width and height. */
  show(film, heatmap, polygons) {
    this.film = { ...film, halves: halved(film) };
    this.heatmap = heatmap;
    this.polygons = polygons;
    this.reset();
  }

  /** Takes the same film with all its pixels; how it is looked at stays. */
  refine(film) {
    this.film = { ...film, halves: halved(film) };
    this.draw();
  }

  clear() {
    this.film = null;
  }

  reset() {
    this.set({ ...AT_FIRST });
  }

  set(change) {
    const view = { ...this.view, ...change };
    view.zoom = Math.min(Math.max(view.zoom, 1), MOST_ZOOM);
    view.brightness = Math.min(Math.max(view.brightness, -1), 1);
    view.contrast = Math.min(Math.max(view.contrast, -1), 1);
    this.view = view;
    if (this.film) this.hold();
    this.draw();
    this.changed(this.view);
  }

  /** Zooms by a factor; what lies under the point (in pixels of the screen, from the middle) stays there. */
  zoomBy(factor, px = 0, py = 0) {
    if (!this.film) return;
    const before = this.scale();
    const zoom = Math.min(Math.max(this.view.zoom * factor, 1), MOST_ZOOM);
    const after = (before * zoom) / this.view.zoom;
    this.set({
      zoom,
      x: this.view.x + (px / before - px / after) / this.film.width,
      y: this.view.y + (py / before - py / after) / this.film.height,
    });
  }

  zoomIn() {
    this.zoomBy(STEP);
  }

  zoomOut() {
    this.zoomBy(1 / STEP);
  }

  /** Moves the film by pixels of the screen. */
  move(dx, dy) {
    if (!this.film) return;
    const scale = this.scale();
    this.set({ x: this.view.x - dx / scale / this.film.width, y: this.view.y - dy / scale / this.film.height });
  }

  light(brightness, contrast) {
    this.set({ brightness: this.view.brightness + brightness, contrast: this.view.contrast + contrast });
  }

  /** Pixels of the screen for one of the film. */
  scale() {
    const { clientWidth: width, clientHeight: height } = this.ground;
    return Math.min(width / this.film.width, height / this.film.height) * this.view.zoom;
  }

  /** Keeps the film where it can be seen. */
  hold() {
    const scale = this.scale();
    const within = (at, room, size) => {
      const half = Math.min(room / scale / size, 1) / 2;
      return Math.min(Math.max(at, half), 1 - half);
    };
    this.view.x = within(this.view.x, this.ground.clientWidth, this.film.width);
    this.view.y = within(this.view.y, this.ground.clientHeight, this.film.height);
    // A finger scrolls the page as long as there is nothing to be moved.
    this.ground.style.touchAction = this.view.zoom > 1 || this.dragsLight ? "none" : "pan-y";
    this.ground.style.cursor = this.dragsLight ? "ns-resize" : this.view.zoom > 1 ? "grab" : "";
  }

  /** Draws at the next frame. */
  draw() {
    if (this.waiting || !this.film) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      if (!this.film || !this.ground.clientWidth) return;
      this.hold();
      const ratio = Math.min(devicePixelRatio, 2);
      this.canvas.width = Math.round(this.ground.clientWidth * ratio);
      this.canvas.height = Math.round(this.ground.clientHeight * ratio);
      this.paint(this.canvas, this.scale() * ratio, this.view, this.mix, this.outlined);
    });
  }

  /** Draws the whole film on a canvas of its own, as large as paper needs. */
  print(canvas, mix, outlined) {
    const scale = 1200 / Math.max(this.film.width, this.film.height);
    canvas.width = Math.max(1, Math.round(this.film.width * scale));
    canvas.height = Math.max(1, Math.round(this.film.height * scale));
    this.paint(canvas, scale, { ...AT_FIRST }, mix, outlined);
  }

  paint(canvas, scale, view, mix, outlined) {
    const { film } = this;
    const context = canvas.getContext("2d");
    const left = canvas.width / 2 - view.x * film.width * scale;
    const top = canvas.height / 2 - view.y * film.height * scale;
    context.clearRect(0, 0, canvas.width, canvas.height);
    const part = {
      x: Math.max(0, Math.floor(left)),
      y: Math.max(0, Math.floor(top)),
      right: Math.min(canvas.width, Math.ceil(left + film.width * scale)),
      bottom: Math.min(canvas.height, Math.ceil(top + film.height * scale)),
    };
    if (part.right > part.x && part.bottom > part.y) {
      context.putImageData(sampled(film, part, left, top, scale, greys(film, view)), part.x, part.y);
    }
    if (this.heatmap && mix > 0) {
      context.globalAlpha = mix;
      context.drawImage(this.heatmap, left, top, film.width * scale, film.height * scale);
      context.globalAlpha = 1;
    }
    if (outlined) outline(context, this.polygons, left, top, film.width * scale, film.height * scale);
  }
}

// -------------------------------------------------------------------------------------------------- drawing

/** The film at half its size, a quarter, and so on: the mean of four pixels each, so that small ones do not sparkle. */
function halved(film) {
  const found = [film];
  for (let at = film; Math.min(at.width, at.height) > 512; found.push(at)) {
    const [width, height] = [at.width >> 1, at.height >> 1];
    const values = new at.values.constructor(width * height);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0, i = 2 * y * at.width; x < width; x += 1, i += 2) {
        const sum = at.values[i] + at.values[i + 1] + at.values[i + at.width] + at.values[i + at.width + 1];
        values[y * width + x] = (sum + 2) >> 2;
      }
    }
    at = { width, height, values };
  }
  return found;
}

/** The colour of every value that there can be, as the window has it. */
function greys(film, { brightness, contrast, inverted }) {
  const width = (film.high - film.low) * 4 ** -contrast;
  const centre = (film.low + film.high) / 2 - brightness * (film.high - film.low);
  const table = new Uint32Array(film.levels + 1);
  for (let value = 0; value <= film.levels; value += 1) {
    const light = Math.min(Math.max((value - centre) / width + 0.5, 0), 1);
    const grey = Math.round(255 * (inverted ? 1 - light : light));
    table[value] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
  }
  return table;
}

/** Part of the screen, from the copy of the film that is just larger, linearly between its pixels. */
function sampled(film, part, left, top, scale, table) {
  const copy = Math.min(Math.max(Math.floor(Math.log2(1 / scale) + 1e-6), 0), film.halves.length - 1);
  const { width, height, values } = film.halves[copy];
  const [columns, rows] = [part.right - part.x, part.bottom - part.y];
  const across = places(part.x, columns, left, (film.width * scale) / width, width);
  const down = places(part.y, rows, top, (film.height * scale) / height, height);
  const image = new ImageData(columns, rows);
  const out = new Uint32Array(image.data.buffer);
  for (let y = 0, i = 0; y < rows; y += 1) {
    const [one, other, fy] = [down.first[y] * width, down.second[y] * width, down.share[y]];
    for (let x = 0; x < columns; x += 1, i += 1) {
      const [a, b, fx] = [across.first[x], across.second[x], across.share[x]];
      const above = values[one + a] + fx * (values[one + b] - values[one + a]);
      const below = values[other + a] + fx * (values[other + b] - values[other + a]);
      out[i] = table[(above + fy * (below - above) + 0.5) | 0];
    }
  }
  return image;
}

/** For each pixel of the screen the two of the film between which it lies, and how near it is to the second. */
function places(from, count, start, scale, size) {
  const first = new Int32Array(count);
  const second = new Int32Array(count);
  const share = new Float32Array(count);
  for (let i = 0; i < count; i += 1) {
    const at = Math.min(Math.max((from + i + 0.5 - start) / scale - 0.5, 0), size - 1);
    first[i] = at | 0;
    second[i] = Math.min(first[i] + 1, size - 1);
    share[i] = at - first[i];
  }
  return { first, second, share };
}

function outline(context, polygons, left, top, width, height) {
  context.lineJoin = "round";
  for (const [thick, colour] of [[4.5, LINE_EDGE], [2, LINE]]) {
    context.lineWidth = thick;
    context.strokeStyle = colour;
    for (const polygon of polygons) {
      context.beginPath();
      for (const [x, y] of polygon) context.lineTo(left + x * width, top + y * height);
      context.closePath();
      context.stroke();
    }
  }
}

// ------------------------------------------------------------------------------------- mouse, fingers and keys

function listen(viewer) {
  const { ground } = viewer;
  const fingers = new Map();

  const fromMiddle = (x, y) => {
    const box = ground.getBoundingClientRect();
    return [x - box.left - box.width / 2, y - box.top - box.height / 2];
  };

  ground.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      viewer.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...fromMiddle(event.clientX, event.clientY));
    },
    { passive: false },
  );
  ground.addEventListener("contextmenu", (event) => event.preventDefault());

  ground.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    ground.setPointerCapture(event.pointerId);
  });
  ground.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    fingers.set(event.pointerId, now);
    const [dx, dy] = [now.x - before.x, now.y - before.y];
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const apart = (a) => Math.hypot(a.x - other.x, a.y - other.y) || 1;
      const middle = fromMiddle((now.x + other.x) / 2, (now.y + other.y) / 2);
      viewer.zoomBy(apart(now) / apart(before), ...middle);
      viewer.move(dx / 2, dy / 2);
    } else if (viewer.dragsLight || event.shiftKey || event.buttons & 2) viewer.light(-dy / 300, dx / 300);
    else viewer.move(dx, dy);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    ground.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }

  const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const others = {
    "+": () => viewer.zoomIn(),
    "=": () => viewer.zoomIn(),
    "-": () => viewer.zoomOut(),
    0: () => viewer.set({ x: 0.5, y: 0.5, zoom: 1 }),
    i: () => viewer.set({ inverted: !viewer.view.inverted }),
    r: () => viewer.reset(),
  };
  ground.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const arrow = arrows[event.key];
    if (arrow && event.shiftKey) viewer.light(arrow[1] * 0.05, -arrow[0] * 0.05);
    else if (arrow && viewer.view.zoom > 1) viewer.move(arrow[0] * 60, arrow[1] * 60);
    else if (event.key.toLowerCase() in others) others[event.key.toLowerCase()]();
    else return;
    event.preventDefault();
  });
}
