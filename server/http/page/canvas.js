// The picture with its masks: what is drawn, in four layers, and what is under a point.
//
//     ground   the picture, at the size it is seen
//     labels   which instance is seen at each pixel; the better score lies on top
//     masks    the label map in colours
//     lit      one instance, filled and outlined in white
//
// Whatever changes says from which layer on the drawing is out of date, and the next animation frame does the rest: a
// moving threshold begins at the labels, a moving opacity at the masks, a moving pointer repaints one instance.

import { PALETTE, lighter, pixelColour } from "./colours.js";
import { fillLabels, paintLabels } from "./raster.js";
import { fitView, panView, zoomView } from "./view.js";

const MAX_PIXELS = 3e6; // of the canvas: above it a sharp screen is drawn a little softer, and stays quick
const WHITE = pixelColour([255, 255, 255], 1);
const GROUND = 0, LABELS = 1, MASKS = 2, LIT = 3, CLEAN = 4;

export class Stage {
  #canvas;
  #context;
  #ground = document.createElement("canvas");
  #masks = document.createElement("canvas");
  #labels = new Uint32Array(0);
  #picture = null;
  #size = null; // of the picture, in its own pixels
  #instances = [];
  #shown = [];
  #opacity = 0.5;
  #lit = -1;
  #view = { scale: 1, x: 0, y: 0 };
  #fitted = true;
  #stale = CLEAN;

  /** @param {HTMLCanvasElement} canvas sized by the style sheet */
  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    new ResizeObserver(() => this.#resize()).observe(canvas);
    this.#resize();
  }

  get zoomed() {
    return !this.#fitted;
  }

  /**
   * @param {ImageBitmap | null} picture null where the browser cannot show what the server can read
   * @param {{width: number, height: number}} size of the upright picture
   */
  showPicture(picture, size) {
    const other = size.width !== this.#size?.width || size.height !== this.#size?.height;
    this.#picture = picture;
    this.#size = size;
    if (other) {
      this.#canvas.parentElement.style.setProperty("--aspect", size.width / size.height);
      this.#resize(); // the style sheet may have given it another shape
      this.fit();
    }
    this.#outdate(GROUND);
  }

  /** No picture and no instances. */
  clear() {
    this.#picture = this.#size = null;
    this.#instances = this.#shown = [];
    this.#labels.fill(0);
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
  }

  /** @param {{spans: Int32Array, bbox: number[], colour: number}[]} instances best score first */
  setInstances(instances) {
    this.#instances = instances;
    this.#shown = instances.map(() => true);
    this.#lit = -1;
    this.#outdate(LABELS);
  }

  /** @param {boolean[]} shown by instance */
  setShown(shown) {
    this.#shown = shown;
    this.#outdate(LABELS);
  }

  setOpacity(opacity) {
    this.#opacity = opacity;
    this.#outdate(MASKS);
  }

  /** Light one instance up; -1 for none. */
  light(index) {
    if (index === this.#lit) return;
    this.#lit = index;
    this.#outdate(LIT);
  }

  fit() {
    if (!this.#size) return;
    this.#move(fitView(this.#size, this.#canvas));
  }

  /** Zoom around a point of the canvas in CSS pixels; around its middle without one. */
  zoom(factor, point = { x: this.#canvas.clientWidth / 2, y: this.#canvas.clientHeight / 2 }) {
    if (!this.#size) return;
    const ratio = this.#ratio;
    this.#move(zoomView(this.#view, factor, point.x * ratio, point.y * ratio, this.#size, this.#canvas));
  }

  pan(dx, dy) {
    if (!this.#size) return;
    this.#move(panView(this.#view, dx * this.#ratio, dy * this.#ratio, this.#size, this.#canvas));
  }

  /** Bring an instance into a zoomed view. */
  reveal(index) {
    const [x, y, width, height] = this.#instances[index].bbox;
    const { scale, x: left, y: top } = this.#view;
    const px = (x + width / 2 - left) * scale;
    const py = (y + height / 2 - top) * scale;
    const { width: right, height: bottom } = this.#canvas;
    if (px >= 0 && py >= 0 && px < right && py < bottom) return;
    this.#move(panView(this.#view, right / 2 - px, bottom / 2 - py, this.#size, this.#canvas));
  }

  /** The instance at a point of the canvas, -1 for none. */
  at({ x, y }) {
    this.#draw(); // the label map may be a frame behind
    const column = Math.floor(x * this.#ratio);
    const row = Math.floor(y * this.#ratio);
    const { width, height } = this.#canvas;
    if (column < 0 || row < 0 || column >= width || row >= height) return -1;
    return (this.#labels[row * width + column] ?? 0) - 1;
  }

  /** Where the top middle of an instance is seen, in CSS pixels of the canvas. */
  place(index) {
    const [x, y, width] = this.#instances[index].bbox;
    const { scale, x: left, y: top } = this.#view;
    return { x: ((x + width / 2 - left) * scale) / this.#ratio, y: ((y - top) * scale) / this.#ratio };
  }

  /** The picture with the masks as they are now, at its own size up to `maxPixels`. */
  async toPng(maxPixels = 24e6) {
    const { width, height } = this.#size;
    const scale = Math.min(1, Math.sqrt(maxPixels / (width * height)));
    const page = document.createElement("canvas");
    page.width = Math.max(1, Math.round(width * scale));
    page.height = Math.max(1, Math.round(height * scale));
    const context = page.getContext("2d");
    if (this.#picture) context.drawImage(this.#picture, 0, 0, page.width, page.height);
    const line = Math.max(1, Math.round(Math.max(page.width, page.height) / 900));
    const strip = document.createElement("canvas");
    strip.width = page.width;
    const rows = 512, margin = line; // a strip at a time, with its neighbours' edges, keeps the memory small
    for (let top = 0; top < page.height; top += rows) {
      const first = Math.max(0, top - margin);
      const last = Math.min(page.height, top + rows + margin);
      strip.height = last - first;
      const labels = new Uint32Array(strip.width * strip.height);
      this.#fill(labels, { scale, x: 0, y: first / scale }, strip);
      this.#paint(labels, line, strip);
      const height = Math.min(rows, page.height - top);
      context.drawImage(strip, 0, top - first, page.width, height, 0, top, page.width, height);
    }
    return new Promise((resolve) => page.toBlob(resolve, "image/png"));
  }

  get #ratio() {
    return this.#canvas.width / Math.max(1, this.#canvas.clientWidth);
  }

  #move(view) {
    this.#view = view;
    this.#fitted = view.scale <= fitView(this.#size, this.#canvas).scale;
    this.#canvas.classList.toggle("zoomed", this.zoomed);
    this.#outdate(GROUND);
  }

  #resize() {
    const { clientWidth, clientHeight } = this.#canvas;
    const sharp = Math.min(devicePixelRatio || 1, Math.sqrt(MAX_PIXELS / Math.max(1, clientWidth * clientHeight)));
    const width = Math.max(1, Math.round(clientWidth * sharp));
    const height = Math.max(1, Math.round(clientHeight * sharp));
    if (width === this.#canvas.width && height === this.#canvas.height) return;
    for (const canvas of [this.#canvas, this.#ground, this.#masks]) Object.assign(canvas, { width, height });
    this.#labels = new Uint32Array(width * height);
    if (!this.#size) return;
    if (this.#fitted) this.fit();
    else this.pan(0, 0);
    this.#stale = GROUND;
    this.#draw(); // now: a resized canvas is empty, and would flicker
  }

  #outdate(layer) {
    if (this.#stale === CLEAN) requestAnimationFrame(() => this.#draw());
    this.#stale = Math.min(this.#stale, layer);
  }

  #draw() {
    if (!this.#size) this.#stale = CLEAN;
    if (this.#stale === CLEAN) return;
    const { width, height } = this.#canvas;
    if (this.#stale <= GROUND) this.#drawGround();
    if (this.#stale <= LABELS) this.#fill(this.#labels.fill(0), this.#view, this.#canvas);
    if (this.#stale <= MASKS) this.#paint(this.#labels, Math.max(1, Math.round(1.6 * this.#ratio)), this.#masks);
    this.#stale = CLEAN;
    this.#context.clearRect(0, 0, width, height);
    this.#context.drawImage(this.#ground, 0, 0);
    this.#context.drawImage(this.#masks, 0, 0);
    if (this.#lit >= 0 && this.#shown[this.#lit]) this.#drawLit(this.#instances[this.#lit]);
  }

  #drawGround() {
    const context = this.#ground.getContext("2d");
    const { scale, x, y } = this.#view;
    context.clearRect(0, 0, this.#ground.width, this.#ground.height);
    const { width, height } = this.#size;
    if (!this.#picture) {
      context.fillStyle = "#20242b";
      context.fillRect(-x * scale, -y * scale, width * scale, height * scale);
      return;
    }
    context.imageSmoothingEnabled = scale < 4 * this.#ratio; // close up, pixels are pixels
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#picture, -x * scale, -y * scale, width * scale, height * scale);
  }

  #fill(labels, view, { width, height }) {
    for (let i = this.#instances.length - 1; i >= 0; i--) {
      if (this.#shown[i]) fillLabels(this.#instances[i].spans, i + 1, view, labels, width, height);
    }
  }

  #paint(labels, line, canvas) {
    const colours = this.#instances.map((each) => PALETTE[each.colour]);
    const fills = Uint32Array.from([0, ...colours.map((colour) => pixelColour(colour, this.#opacity))]);
    const outlines = Uint32Array.from([0, ...colours.map((colour) => pixelColour(lighter(colour), 1))]);
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    paintLabels(labels, fills, outlines, line, new Uint32Array(image.data.buffer), canvas.width, canvas.height);
    context.putImageData(image, 0, 0);
  }

  /** Of the instance's own spans, so that what lies below others shows as well. */
  #drawLit({ spans, bbox, colour }) {
    const { scale, x, y } = this.#view;
    const line = Math.max(2, Math.round(2 * this.#ratio));
    const left = Math.max(0, Math.floor((bbox[0] - x) * scale) - 1);
    const top = Math.max(0, Math.floor((bbox[1] - y) * scale) - 1);
    const right = Math.min(this.#canvas.width, Math.ceil((bbox[0] + bbox[2] - x) * scale) + 1);
    const bottom = Math.min(this.#canvas.height, Math.ceil((bbox[1] + bbox[3] - y) * scale) + 1);
    if (right <= left || bottom <= top) return;
    const patch = document.createElement("canvas");
    Object.assign(patch, { width: right - left, height: bottom - top });
    const labels = new Uint32Array(patch.width * patch.height);
    fillLabels(spans, 1, { scale, x: x + left / scale, y: y + top / scale }, labels, patch.width, patch.height);
    const context = patch.getContext("2d");
    const image = context.createImageData(patch.width, patch.height);
    const fill = pixelColour(PALETTE[colour], Math.min(1, this.#opacity + 0.2));
    const pixels = new Uint32Array(image.data.buffer);
    paintLabels(labels, [0, fill], [0, WHITE], line, pixels, patch.width, patch.height);
    context.putImageData(image, 0, 0);
    this.#context.save();
    this.#context.shadowColor = "rgb(0 0 0 / 0.8)"; // white on white still has an edge
    this.#context.shadowBlur = 5 * this.#ratio;
    this.#context.drawImage(patch, left, top);
    this.#context.restore();
  }
}
