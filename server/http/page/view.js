// Which part of the picture is seen, and how large: `scale` canvas pixels for one of the picture's, whose point (x, y)
// lies in the canvas's top left corner. Values in, values out.

/** The whole picture, centred. */
export function fitView(size, canvas) {
  const scale = Math.min(canvas.width / size.width, canvas.height / size.height);
  return centred({ scale, x: 0, y: 0 }, size, canvas);
}

/** `factor` times larger around a canvas point, between the whole picture and 40 pixels for one. */
export function zoomView(view, factor, px, py, size, canvas) {
  const whole = fitView(size, canvas);
  const scale = Math.min(Math.max(view.scale * factor, whole.scale), Math.max(40, whole.scale));
  if (scale === whole.scale) return whole;
  const x = view.x + px / view.scale - px / scale;
  const y = view.y + py / view.scale - py / scale;
  return centred({ scale, x, y }, size, canvas);
}

/** Moved by canvas pixels, but never off the picture. */
export function panView(view, dx, dy, size, canvas) {
  return centred({ ...view, x: view.x - dx / view.scale, y: view.y - dy / view.scale }, size, canvas);
}

function centred(view, size, canvas) {
  const place = (start, whole, seen) =>
    seen >= whole ? (whole - seen) / 2 : Math.min(Math.max(start, 0), whole - seen);
  return {
    scale: view.scale,
    x: place(view.x, size.width, canvas.width / view.scale),
    y: place(view.y, size.height, canvas.height / view.scale),
  };
}
