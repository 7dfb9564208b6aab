// The request on the screen as lines to copy: for a shell, and for Python with nothing but its standard library.

const YOURS = "your key";

/**
 * @param {string} address the whole URL, query included
 * @param {{name: string, address?: string}} picture a file of the visitor's, or one that lies beside the page
 * @param {boolean} keyed whether the server asks for a key, whose place is then shown: no page can read a password
 */
export function curlLines(address, picture, keyed) {
  const curl = keyed ? 'curl -H "Authorization: Bearer $KEY"' : "curl";
  const first = keyed ? `KEY='${YOURS}'\n` : "";
  if (picture.address) {
    return `${first}${curl} -s ${shell(picture.address)} |\n  ${curl} --data-binary @- ${shell(address)}`;
  }
  return `${first}${curl} --data-binary @${shell(picture.name)} \\\n  ${shell(address)}`;
}

/** See `curlLines`. */
export function pythonLines(address, picture, keyed) {
  const bytes = picture.address
    ? `urllib.request.urlopen(${quoted(picture.address)}).read()`
    : `open(${quoted(picture.name)}, "rb").read()`;
  const login = `opener = urllib.request.build_opener()
opener.addheaders = [("Authorization", ${quoted(`Bearer ${YOURS}`)})]
urllib.request.install_opener(opener)
`;
  return `import json, urllib.request

${keyed ? login : ""}picture = ${bytes}
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
  keyed = false; // see `curlLines`

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
    this.#text.textContent = this.#write(address, picture, this.keyed);
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
