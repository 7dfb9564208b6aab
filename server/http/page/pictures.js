// The four ways a picture comes in: a chosen file, a sample, the clipboard, a drop anywhere on the page.

import { fetchSample, resolve } from "./api.js";

/**
 * @param {(picture: {blob: Blob, name: string, address?: string}) => void} take
 * @param {(error: Error) => void} complain
 * @param {(text: string) => void} say
 */
export function watchPictures(take, complain, say) {
  const input = document.getElementById("file");
  input.addEventListener("change", () => {
    const [file] = input.files;
    if (file) take({ blob: file, name: file.name });
    input.value = ""; // so that the same file can be chosen again
  });

  for (const button of document.querySelectorAll("[data-sample]")) {
    const { sample } = button.dataset;
    button.addEventListener("click", async () => {
      try {
        const address = resolve(`page/${sample}`);
        take({ blob: await fetchSample(sample), name: sample, address });
      } catch (error) {
        complain(error);
      }
    });
  }

  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) take({ blob: file, name: file.name || "pasted.png" });
  });

  const mark = (on) => document.body.classList.toggle("dragging", on);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) mark(false); // it left the window, not just an element
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(false);
    const [file] = event.dataTransfer.files;
    if (file) take({ blob: file, name: file.name });
    else say("That was no file. Save the picture first, then drop it here.");
  });
}
