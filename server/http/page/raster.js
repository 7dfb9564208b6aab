// From spans to pixels, in two steps that know nothing of the page:
//
//     spans --fillLabels--> which instance is seen at each pixel --paintLabels--> colours, with outlines
//
// Both work at the size that is shown. The label map in the middle also answers "what is under the pointer?".

/**
 * Write `label` wherever the mask is seen.
 *
 * A canvas pixel shows the picture's pixel that its centre falls into. A mask too small to be met by any centre still
 * gets the pixel at its middle, so that nothing disappears in a small view of a large photo.
 *
 * @param {Int32Array} spans of one mask, not empty
 * @param {Uint32Array} labels width * height, row by row
 */
export function fillLabels(spans, label, view, labels, width, height) {
  const { scale, x: left, y: top } = view;
  let filled = false;
  for (let i = 0; i < spans.length; i += 3) {
    const x0 = Math.max(0, Math.ceil((spans[i] - left) * scale - 0.5));
    const x1 = Math.min(width, Math.ceil((spans[i] + 1 - left) * scale - 0.5));
    if (x0 >= x1) continue;
    const y0 = Math.max(0, Math.ceil((spans[i + 1] - top) * scale - 0.5));
    const y1 = Math.min(height, Math.ceil((spans[i + 2] - top) * scale - 0.5));
    for (let row = y0 * width; row < y1 * width; row += width) labels.fill(label, row + x0, row + x1);
    filled ||= y0 < y1;
  }
  if (!filled && spans.length) {
    const middle = 3 * Math.floor(spans.length / 6);
    const x = Math.floor((spans[middle] + 0.5 - left) * scale);
    const y = Math.floor(((spans[middle + 1] + spans[middle + 2]) / 2 - top) * scale);
    if (x >= 0 && x < width && y >= 0 && y < height) labels[y * width + x] = label;
  }
}

/**
 * Colour a label map. A pixel is outline when another label lies `line` pixels away in one of four directions.
 *
 * @param {Uint32Array} fills colour by label; 0 is no label
 * @param {Uint32Array} outlines colour by label
 * @param {Uint32Array} pixels width * height, as `pixelColour` makes them
 */
export function paintLabels(labels, fills, outlines, line, pixels, width, height) {
  let i = 0;
  for (let y = 0; y < height; y++) {
    const up = y >= line ? line * width : 0; // the view's border is no outline
    const down = y + line < height ? line * width : 0;
    for (let x = 0; x < width; x++, i++) {
      const label = labels[i];
      if (label === 0) {
        pixels[i] = 0;
        continue;
      }
      const before = x >= line ? line : 0;
      const after = x + line < width ? line : 0;
      const inside =
        labels[i - before] === label && labels[i + after] === label &&
        labels[i - up] === label && labels[i + down] === label;
      pixels[i] = inside ? fills[label] : outlines[label];
    }
  }
}
