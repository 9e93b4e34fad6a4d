// How numbers are written, and lines over the last five minutes.

const compact = (value, base, units) => {
  let step = 0;
  while (Math.abs(value) >= base && step < units.length - 1) {
    value /= base;
    step += 1;
  }
  const rounded = Number(value.toFixed(value < 9.95 ? 1 : 0));
  return `${rounded}\u202f${units[step]}`.trimEnd();
};
const count = (value) => compact(value, 1000, ["", "k", "M", "G", "T"]);
const bytes = (value) => compact(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const whole = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
const percent = (value) => `${Math.round(value * 100)}\u202f%`;
const many = (number, thing) => `${whole(number)} ${thing}${number === 1 ? "" : "s"}`;

/** Microseconds. */
const time = (us) => {
  if (us < 1000) return `${Math.round(us)}\u202fµs`;
  if (us < 1e6) return `${Number((us / 1e3).toPrecision(us < 1e5 ? 2 : 3))}\u202fms`;
  if (us < 12e7) return `${Number((us / 1e6).toFixed(us < 1e7 ? 1 : 0))}\u202fs`;
  if (us < 72e8) return `${Number((us / 6e7).toPrecision(2))}\u202fmin`;
  return `${Number((us / 36e8).toPrecision(2))}\u202fh`;
};
const age = (ms) => {
  const seconds = Math.floor(ms / 1000);
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0\u202fs";
  const parts = units.slice(first, first + 2).map(([name, size], index) => {
    const left = index === 0 ? seconds : seconds % units[first][1];
    return [Math.floor(left / size), name];
  });
  return parts.filter(([number], index) => index === 0 || number > 0).map((it) => it.join("\u202f")).join(" ");
};
const clock = (ms) => new Date(ms).toTimeString().slice(0, 8);

const element = (id) => document.getElementById(id);
const make = (tag, kind = "", text = "") => {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  return made;
};
/** Sets a text where it is another one, so that a selection or a screen reader is not disturbed by nothing new. */
const write = (target, text) => {
  if (target.textContent !== text) target.textContent = text;
};

const WINDOW_MS = 300_000;
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 100;

/** Lines over the last five minutes. `values` gives a pulse's numbers, one a series; null where there are none. */
class Chart {
  constructor({ title, series, values, format, inks = ["s0", "s1"], log = false, top = 0, base = 10 }) {
    Object.assign(this, { values, format, log, top, base, at: null });
    this.figure = make("figure");
    const caption = make("figcaption");
    caption.append(make("b", "", title));
    this.readings = series.map((name, index) => {
      const entry = make("span", inks[index], name ? `${name} ` : "");
      const reading = make("output");
      reading.setAttribute("aria-live", "off");
      entry.append(reading);
      caption.append(entry);
      return reading;
    });
    this.moment = make("time");
    this.plot = make("div", "plot");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const path = (kind) => {
      const made = document.createElementNS(SVG, "path");
      made.setAttribute("class", kind);
      svg.append(made);
      return made;
    };
    this.grid = path("grid");
    this.marks = path("marks");
    this.area = log ? null : path(`area ${inks[0]}`);
    // The first is drawn last, so that it is on top.
    this.lines = inks.slice(0, series.length).reverse().map(path).reverse();
    this.cursor = path("cursor");
    this.nothing = make("p");
    this.plot.append(svg, this.nothing, this.moment);
    this.figure.append(caption, this.plot);
    this.labels = [];
    this.plot.addEventListener("pointermove", (event) => {
      const box = this.plot.getBoundingClientRect();
      this.at = (event.clientX - box.left) / box.width;
      this.read();
    });
    this.plot.addEventListener("pointerleave", () => {
      this.at = null;
      this.read();
    });
  }

  draw(pulses) {
    this.points = pulses.map((pulse) => ({ pulse, values: this.values(pulse) }));
    this.end = pulses.length ? pulses.at(-1).at_unix_ms : 0;
    const numbers = this.points.flatMap((point) => point.values).filter((value) => value !== null);
    const ticks = this.log ? this.decades(numbers) : this.steps(Math.max(this.top, ...numbers));
    const y = (value) => {
      const [low, high] = [ticks[0], ticks.at(-1)];
      const share = this.log ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : value / high;
      return (HEIGHT * (1 - share)).toFixed(1);
    };
    this.grid.setAttribute("d", ticks.map((tick) => `M0 ${y(tick)}H${WIDTH}`).join(""));
    this.label(ticks.map((tick) => [y(tick), this.format(tick)]));
    this.lines.forEach((line, index) => line.setAttribute("d", this.trace(index, y)));
    this.area?.setAttribute("d", this.trace(0, y, true));
    this.marks.setAttribute("d", this.reloads());
    write(this.nothing, numbers.length ? "" : "none in the last five minutes");
    this.read();
  }

  x(pulse) {
    return (WIDTH * (1 - (this.end - pulse.at_unix_ms) / WINDOW_MS)).toFixed(1);
  }

  /** The path of a series, with gaps where there is nothing, or what is below it. */
  trace(index, y, area = false) {
    const runs = [];
    let before = null;
    for (const { pulse, values } of this.points) {
      const value = values[index];
      const follows = before !== null && pulse.at_unix_ms - before < 2.5 * Math.max(pulse.period_ms, 1000);
      before = value === null ? null : pulse.at_unix_ms;
      if (value === null) continue;
      if (!follows) runs.push([]);
      runs.at(-1).push(`${this.x(pulse)} ${y(value)}`);
    }
    // A point of its own is a line to where it is, which round ends make a dot.
    return runs.map((run) => {
      const line = `M${run[0]}L${run.join("L")}`;
      const [from, to] = [run[0], run.at(-1)].map((point) => point.split(" ")[0]);
      return area ? `${line}L${to} ${HEIGHT}L${from} ${HEIGHT}Z` : line;
    }).join("");
  }

  /** Where another generation began. */
  reloads() {
    const began = this.points.filter(({ pulse }, index) =>
      index > 0 && pulse.generation !== this.points[index - 1].pulse.generation);
    return began.map(({ pulse }) => `M${this.x(pulse)} 0V${HEIGHT}`).join("");
  }

  steps(most) {
    const unit = this.base ** Math.floor(Math.log(most || 1) / Math.log(this.base));
    const sizes = this.base === 10 ? [1, 2, 5, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
    const high = this.top || Math.max(1, unit * sizes.find((size) => unit * size >= most * 0.999));
    return [0, high / 2, high];
  }

  decades(numbers) {
    const low = Math.floor(Math.log10(Math.max(1, Math.min(...numbers, 1e9))));
    const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(1, ...numbers))));
    const every = Math.ceil((high - low) / 3);
    const ticks = [];
    for (let power = low; ticks.length < 2 || ticks.at(-1) < 10 ** high; power += every) ticks.push(10 ** power);
    return ticks;
  }

  label(texts) {
    while (this.labels.length < texts.length) {
      const label = make("small");
      label.setAttribute("aria-hidden", "true");
      this.labels.push(label);
      this.plot.append(label);
    }
    this.labels.forEach((label, index) => {
      const [y, text] = texts[index] ?? [0, ""];
      label.style.top = `${y}%`;
      label.hidden = index >= texts.length;
      write(label, text);
    });
  }

  /** The numbers of the moment that is pointed at, or of the last one. */
  read() {
    if (!this.points?.length) return;
    const wanted = this.at === null ? this.end : this.end - (1 - this.at) * WINDOW_MS;
    const distance = (point) => Math.abs(point.pulse.at_unix_ms - wanted);
    const point = this.points.reduce((best, it) => (distance(it) <= distance(best) ? it : best));
    this.readings.forEach((reading, index) => {
      const value = point.values[index];
      write(reading, value === null ? "–" : this.format(value));
    });
    write(this.moment, this.at === null ? "" : clock(point.pulse.at_unix_ms));
    this.cursor.setAttribute("d", this.at === null ? "" : `M${this.x(point.pulse)} 0V${HEIGHT}`);
  }
}

