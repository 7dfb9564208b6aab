// The request on the screen as lines to copy: for a shell, and for Python with nothing but its standard library.

/**
 * @param {string} address the whole URL, query included
 * @param {{name: string, address?: string}} picture a file of the visitor's, or one that lies beside the page
 */
export function curlLines(address, picture) {
  if (picture.address) {
    return `curl -s ${shell(picture.address)} |\n  curl --data-binary @- ${shell(address)}`;
  }
  return `curl --data-binary @${shell(picture.name)} \\\n  ${shell(address)}`;
}

/** See `curlLines`. */
export function pythonLines(address, picture) {
  const bytes = picture.address
    ? `urllib.request.urlopen(${quoted(picture.address)}).read()`
    : `open(${quoted(picture.name)}, "rb").read()`;
  return `import json, urllib.request

picture = ${bytes}
url = ${quoted(address)}
with urllib.request.urlopen(url, picture) as answer:
    for instance in json.load(answer)["instances"]:
        print(instance["category"], instance["score"], instance["area"])`;
}

/** The panel with the lines: two tabs and a button that copies. */
export class Lines {
  #text = document.getElementById("lines");
  #tabs = [...document.querySelectorAll("[role=tab]")];
  #write = curlLines;
  #request = ["", { name: "" }];

  constructor() {
    for (const tab of this.#tabs) {
      tab.addEventListener("click", () => this.#choose(tab));
      tab.addEventListener("keydown", (event) => {
        if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
        const other = this.#tabs[1 - this.#tabs.indexOf(tab)];
        this.#choose(other);
        other.focus();
      });
    }
    document.getElementById("copy").addEventListener("click", (event) => this.#copy(event.target));
  }

  show(address, picture) {
    this.#request = [address, picture];
    this.#text.textContent = this.#write(address, picture);
  }

  #choose(chosen) {
    for (const tab of this.#tabs) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
    this.#text.setAttribute("aria-labelledby", chosen.id);
    this.#write = chosen.id === "tab-python" ? pythonLines : curlLines;
    this.show(...this.#request);
  }

  async #copy(button) {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(this.#text.textContent);
    } catch {
      getSelection().selectAllChildren(this.#text); // a plain http address may not write to the clipboard
      said = "Selected";
    }
    button.textContent = said;
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }
}

/** A word for sh; quoted where it has to be. */
function shell(text) {
  return /^[\w./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A string that Python reads as JSON does. */
function quoted(text) {
  return JSON.stringify(text);
}
