// COCO's compressed run lengths, read back. The format is explained where it is written: server/rle.py.
//
//     "531N00023"  ->  5 3 1 1 1 1 1 3 4      runs of zeros and ones in turn, down the columns, left to right
//                  ->  (1, 1, 4) (2, 1, 2) (2, 3, 4) (3, 1, 4)     spans of ones: column, first row, end row

/** Read a COCO string into run lengths, zeros first. Throws on a string that is none. */
export function stringToRuns(text) {
  const runs = [];
  let at = 0;
  while (at < text.length) {
    let number = 0;
    let shift = 0;
    let group;
    do {
      group = text.charCodeAt(at++) - 48;
      if (!(group >= 0 && group < 64) || shift > 30) throw new RangeError("not a COCO run-length string");
      number |= (group & 31) << shift;
      shift += 5;
    } while (group & 32);
    if (group & 16 && shift < 32) number |= -1 << shift; // the highest bit of the last group is the sign
    if (runs.length > 2) number += runs[runs.length - 2];
    runs.push(number);
  }
  return runs;
}

/**
 * Cut the runs of ones at the ends of columns.
 *
 * A mask is kept like this: it is painted at any zoom without its frame ever being filled, and costs what its columns
 * cost, on a photo of 12 megapixels as on a thumbnail.
 *
 * @param {number[]} runs zeros first
 * @param {number} height of the frame
 * @returns {Int32Array} triples of column, first row, row after the last
 */
export function runsToSpans(runs, height) {
  const spans = [];
  let place = 0;
  for (let i = 0; i < runs.length; i++) {
    const end = place + runs[i];
    while (i % 2 && place < end) {
      const column = Math.floor(place / height);
      const stop = Math.min(end, (column + 1) * height);
      spans.push(column, place - column * height, stop - column * height);
      place = stop;
    }
    place = end;
  }
  return Int32Array.from(spans);
}

/** The spans of an answer's `segmentation`: compressed strings, and lists of runs too. */
export function readSpans({ size, counts }) {
  return runsToSpans(typeof counts === "string" ? stringToRuns(counts) : counts, size[0]);
}
