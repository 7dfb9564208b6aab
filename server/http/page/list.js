// The instances as a list box: one stop of the Tab key, arrows inside. It holds which instance is picked.

import { cssColour } from "./colours.js";
import { describe } from "./words.js";

const PAGE = 10;

export class InstanceList {
  #box;
  #items = [];
  #shown = [];
  #picked = -1;
  #tell;

  /**
   * @param {HTMLElement} box with role=listbox
   * @param {{pick: (index: number) => void, point: (index: number) => void}} tell what was picked, what is pointed at
   */
  constructor(box, tell) {
    this.#box = box;
    this.#tell = tell;
    box.addEventListener("keydown", (event) => this.#key(event));
    box.addEventListener("click", (event) => this.#onItem(event, (index) => this.pick(index)));
    box.addEventListener("pointerover", (event) => this.#onItem(event, tell.point));
    box.addEventListener("pointerleave", () => tell.point(-1));
  }

  get picked() {
    return this.#picked;
  }

  /** @param {object[]} instances as answered, best score first, with a `colour` each */
  setInstances(instances) {
    this.#picked = -1;
    this.#box.removeAttribute("aria-activedescendant");
    this.#items = instances.map((instance, index) => makeItem(instance, index));
    this.#shown = instances.map(() => true);
    this.#box.replaceChildren(...this.#items);
  }

  setShown(shown) {
    this.#shown = shown;
    for (const [index, item] of this.#items.entries()) item.hidden = !shown[index];
    if (this.#picked >= 0 && !shown[this.#picked]) this.pick(-1);
  }

  /** Mark one instance and bring it into view; -1 for none. */
  pick(index) {
    this.#items[this.#picked]?.setAttribute("aria-selected", "false");
    this.#picked = index;
    const item = this.#items[index];
    if (item) {
      item.setAttribute("aria-selected", "true");
      this.#box.setAttribute("aria-activedescendant", item.id);
      const { offsetTop: top, offsetHeight: height } = item; // not scrollIntoView: it would move the page as well
      const { scrollTop, clientHeight } = this.#box;
      if (top < scrollTop) this.#box.scrollTop = top;
      else if (top + height > scrollTop + clientHeight) this.#box.scrollTop = top + height - clientHeight;
    } else {
      this.#box.removeAttribute("aria-activedescendant");
    }
    this.#tell.pick(index);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const order = this.#items.map((_, index) => index).filter((index) => this.#shown[index]);
    const at = order.indexOf(this.#picked);
    const last = order.length - 1;
    const targets = {
      ArrowDown: at + 1,
      ArrowUp: at < 0 ? last : at - 1,
      PageDown: at + PAGE,
      PageUp: at - PAGE,
      Home: 0,
      End: last,
    };
    if (event.key === "Escape") this.pick(-1);
    else if (!(event.key in targets)) return;
    else if (order.length) this.pick(order[Math.min(Math.max(targets[event.key], 0), last)]);
    event.preventDefault();
  }

  #onItem(event, then) {
    const item = event.target.closest("[role=option]");
    if (item) then(Number(item.dataset.index));
  }
}

function makeItem(instance, index) {
  const { category, score, area } = describe(instance);
  const item = document.createElement("div");
  item.id = `instance-${index}`;
  item.dataset.index = index;
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", "false");
  const swatch = document.createElement("i");
  swatch.style.background = cssColour(instance.colour);
  item.append(swatch);
  for (const textContent of [category, score, area]) {
    item.append(Object.assign(document.createElement("span"), { textContent }));
  }
  return item;
}
