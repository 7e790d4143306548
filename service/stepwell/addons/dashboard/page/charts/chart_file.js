// Files of what the charts show: a picture (PNG) and a table (CSV).

const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** The rows of a stream as CSV: step, time, inputs and predictions; rows that only interrupt the lines are left out. */
export function csvOf(rows, inputs, outputs) {
  const names = [...inputs, ...outputs].map(({ name, unit }) => (unit ? `${name} (${unit})` : name));
  const lines = [["step", "time", ...names].map(quoted).join(",")];
  for (const row of rows) {
    if (row.step === null) continue;
    const values = (series, which) => series.map(({ tensor, index }) => row[which][tensor]?.[index] ?? "");
    lines.push([row.step, new Date(row.time).toISOString(), ...values(inputs, "inputs"), ...values(outputs, "outputs")].join(","));
  }
  return `${lines.join("\n")}\n`;
}

/** Charts below each other in one picture with a title, as a Blob. `charts`: [{title, canvas}]. */
export function pictureOf(title, charts) {
  const ratio = devicePixelRatio;
  const style = getComputedStyle(document.querySelector(".panel"));
  const [line, gap] = [24 * ratio, 12 * ratio];
  const drawn = charts.filter(({ canvas }) => canvas);
  const picture = document.createElement("canvas");
  picture.width = Math.max(...drawn.map(({ canvas }) => canvas.width)) + 2 * gap;
  picture.height = line + gap + drawn.reduce((sum, { canvas }) => sum + canvas.height + line, 0);
  const ctx = picture.getContext("2d");
  ctx.fillStyle = style.backgroundColor;
  ctx.fillRect(0, 0, picture.width, picture.height);
  ctx.fillStyle = style.color;
  const write = (text, size, y) => {
    ctx.font = `600 ${size * ratio}px ${style.fontFamily}`;
    ctx.fillText(text, gap, y);
  };
  let y = line;
  write(title, 15, y);
  for (const { title: name, canvas } of drawn) {
    write(name, 12, y + line - 4 * ratio);
    ctx.drawImage(canvas, gap, y + line);
    y += line + canvas.height;
  }
  return new Promise((done) => picture.toBlob(done, "image/png"));
}

/** Let the browser save a Blob under a name. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
