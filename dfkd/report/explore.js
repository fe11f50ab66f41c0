"use strict";
// Tries methods, count, gamma and balance on the stored scores, by the same rules as dfkd.select.
const explore = {
  /** Return a column from little-endian base64. */
  column(text, type) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new type(bytes.buffer);
  },

  /** Return rows sorted by a column. Of equal values, the earlier row comes first. */
  order(values, sign) {
    const rows = Uint32Array.from(values.keys()).filter((row) => !Number.isNaN(values[row]));
    return rows.sort((a, b) => sign * (values[a] - values[b]) || a - b);
  },

  /** Return a permutation decided by the seed. `--seed` gives another one, which numpy draws. */
  shuffled(count, seed) {
    const rows = Uint32Array.from({ length: count }, (_, k) => k);
    let state = seed + 1;
    for (let k = count - 1; k > 0; k--) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const other = Math.floor((state / 4294967296) * (k + 1));
      [rows[k], rows[other]] = [rows[other], rows[k]];
    }
    return rows;
  },

  /** Return how many rows to take of each group, as evenly as possible. The first groups get the remainder. */
  quotas(sizes, count) {
    const wanted = Math.min(count, sizes.reduce((a, b) => a + b, 0));
    const taken = (level) => sizes.reduce((sum, size) => sum + Math.min(size, level), 0);
    let low = 0, high = Math.max(0, ...sizes);
    while (low < high) {
      const level = Math.floor((low + high + 1) / 2);
      if (taken(level) <= wanted) low = level;
      else high = level - 1;
    }
    let left = wanted - taken(low);
    return sizes.map((size) => (size > low && left > 0 ? (left--, low + 1) : Math.min(size, low)));
  },

  /** Return the rows that a method picks, the admitted rows and the threshold. */
  choose(pool, { method, gamma, count, balance }) {
    const total = pool.confidence.length;
    let rows = explore.ranked(pool, method), threshold = null;
    if (method === "threshold") {
      const share = Math.min(total, Math.max(1, Math.ceil(Number((gamma * total).toFixed(6)))));
      threshold = pool.confidence[rows[share - 1]];
      let admitted = share;
      while (admitted < total && pool.confidence[rows[admitted]] >= threshold) admitted++;
      rows = rows.subarray(0, admitted);
    }
    const admitted = rows;
    const wanted = Math.min(count, rows.length);
    let picked = rows.subarray(0, wanted);
    if (balance === "class") {
      if (method === "statistics") rows = rows.subarray(0, Math.ceil(1.5 * wanted));
      const sizes = explore.perClass(pool, rows);
      const left = explore.quotas(sizes, wanted);
      picked = rows.filter((row) => left[pool.prediction[row]]-- > 0);
    }
    return { picked, admitted, threshold };
  },

  ranked(pool, method) {
    pool.orders ??= {};
    pool.orders[method] ??= {
      threshold: () => explore.ranked(pool, "confidence"),
      confidence: () => explore.order(pool.confidence, -1),
      entropy: () => explore.order(pool.entropy, -1),
      statistics: () => explore.order(pool.distance, 1),
      random: () => explore.shuffled(pool.confidence.length, 0),
    }[method]();
    return pool.orders[method];
  },

  perClass(pool, rows) {
    const sizes = new Array(pool.classes).fill(0);
    for (const row of rows) sizes[pool.prediction[row]]++;
    return sizes;
  },

  /** Return the command for the shown selection of `count` images, scaled to the full pool. */
  command(pool, { method, gamma, count, balance }) {
    const share = method === "threshold" ? ` --gamma ${gamma}` : "";
    const full = Math.max(1, Math.round(count * pool.scale));
    return `dfkd select --teacher TEACHER --pool POOL --method ${method}${share} --count ${full} --balance ${balance} --out selection`;
  },

  /** Return a class's number and, if known, its name. */
  named(pool, number) {
    return number in pool.names ? `${number} ${pool.names[number]}` : `${number}`;
  },

  ready() {
    const stored = document.getElementById("pool");
    if (!stored) return;
    const given = JSON.parse(stored.textContent);
    const pool = { ...given };
    for (const [name, type] of Object.entries({ confidence: Float32Array, entropy: Float32Array, distance: Float32Array, prediction: Uint32Array, reason: Uint8Array, row: Uint32Array, east: Uint16Array, north: Uint16Array }))
      pool[name] = given[name] == null ? null : explore.column(given[name], type);
    const form = document.querySelector(".explore form");
    const view = new View(pool, form);
    form.addEventListener("input", () => view.update());
    form.addEventListener("submit", (event) => event.preventDefault());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view.draw());
    addEventListener("resize", () => view.draw());
    form.closest(".explore").hidden = false;
    view.update();
  },
};

class View {
  constructor(pool, form) {
    this.pool = pool;
    this.form = form;
    this.at = new Map(Array.from(pool.row, (row, k) => [row, k]));
    this.thumbs = [...document.querySelectorAll("img[data-row]")].filter((image) => this.at.has(Number(image.dataset.row)));
    this.ofRow = new Map(this.thumbs.map((image) => [this.at.get(Number(image.dataset.row)), image]));
    this.plane = document.getElementById("plane");
    this.plane.addEventListener("pointermove", (event) => this.point(event));
  }

  get options() {
    const fields = this.form.elements;
    return { method: fields.method.value, gamma: Number(fields.gamma.value), count: Number(fields.count.value), balance: fields.balance.value };
  }

  update() {
    const { pool, form } = this, options = this.options;
    form.elements.gamma.disabled = options.method !== "threshold";
    this.chosen = explore.choose(pool, options);
    const { picked, admitted, threshold } = this.chosen;
    this.isPicked = new Uint8Array(pool.confidence.length);
    for (const row of picked) this.isPicked[row] = 1;
    const stored = pool.reason.reduce((sum, reason, row) => sum + (reason === pool.selected && this.isPicked[row]), 0);
    const full = (n) => Math.round(n * pool.scale).toLocaleString("en");
    form.elements.gammaShown.value = options.gamma;
    form.elements.countShown.value = full(options.count);
    const parts = [`${full(picked.length)} picked of ${full(admitted.length)} admitted`];
    if (threshold !== null) parts.push(`threshold ${threshold.toFixed(4)}`);
    parts.push(`${picked.length ? Math.round((100 * stored) / picked.length) : 0} % of them are in this selection`);
    document.getElementById("explore-says").textContent = parts.join("; ") + ".";
    // the images that are picked: select refuses a count above those that the method admits
    const words = explore.command(pool, { ...options, count: picked.length }).split(/(--[a-z-]+)/);
    document.getElementById("explore-command").replaceChildren(...words.map(this.unbroken));
    for (const image of this.thumbs) image.closest("li").classList.toggle("in", this.isPicked[this.at.get(Number(image.dataset.row))] === 1);
    this.bars();
    this.draw();
  }

  /** Return an option in an element that is not broken at a hyphen, and other text as it is. */
  unbroken(word) {
    if (!word.startsWith("--")) return word;
    const option = document.createElement("span");
    option.textContent = word;
    return option;
  }

  /** Draw the images per class before and after balance. Before: the best images, as many as are picked. */
  bars() {
    const { pool } = this, { picked, admitted } = this.chosen;
    const before = explore.perClass(pool, admitted.subarray(0, picked.length));
    const after = explore.perClass(pool, picked);
    const most = Math.max(1, ...before, ...after);
    const shown = [...after.keys()].sort((a, b) => before[b] - before[a] || a - b).slice(0, 40).sort((a, b) => a - b);
    const bar = (count, name) => {
      const made = document.createElement("span");
      made.className = name;
      made.style.width = `${(100 * count) / most}%`;
      return made;
    };
    document.getElementById("explore-classes").replaceChildren(
      ...shown.map((k) => {
        const item = document.createElement("li"), name = document.createElement("b"), both = document.createElement("span");
        name.textContent = k;
        both.append(bar(before[k], "before"), bar(after[k], "after"));
        item.title = `class ${explore.named(pool, k)}: ${before[k]} before balance, ${after[k]} after`;
        item.append(name, both);
        return item;
      }),
    );
  }

  /** Draw the plane. Picked images come last, so that they are visible. */
  draw() {
    const { pool, plane } = this;
    const box = plane.getBoundingClientRect(), dense = devicePixelRatio || 1;
    if (!box.width) return;
    plane.width = box.width * dense;
    plane.height = box.height * dense;
    const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const pen = plane.getContext("2d");
    pen.scale(dense, dense);
    const left = 30, bottom = 24, wide = box.width - left - 6, tall = box.height - bottom - 6;
    const { across, up, acrossName, upName } = this.axes();
    this.x = (row) => left + across(row) * wide;
    this.y = (row) => box.height - bottom - up(row) * tall;
    const size = pool.confidence.length > 20000 ? 1.5 : 3;
    for (const [wanted, name] of [[0, "--rule-dark"], [1, "--c0"]]) {
      pen.fillStyle = color(name);
      for (let row = 0; row < pool.confidence.length; row++)
        if (this.isPicked[row] === wanted) pen.fillRect(this.x(row) - size / 2, this.y(row) - size / 2, size, size);
    }
    pen.fillStyle = pen.strokeStyle = color("--ink");
    pen.font = "12px system-ui, sans-serif";
    const fromZeroToOne = (name) => name === "confidence" || name === "entropy";
    const write = (text, x, y, align) => {
      pen.textAlign = align;
      pen.fillText(text, x, y);
    };
    write(acrossName, left + wide / 2, box.height - 6, "center");
    if (fromZeroToOne(acrossName)) {
      write("0", left, box.height - 6, "left");
      write("1", box.width - 6, box.height - 6, "right");
    }
    if (fromZeroToOne(upName)) {
      write("0", left - 8, box.height - bottom, "right");
      write("1", left - 8, 14, "right");
    }
    pen.save();
    pen.translate(14, 6 + tall / 2);
    pen.rotate(-Math.PI / 2);
    write(upName, 0, 0, "center");
    pen.restore();
    const hasLine = acrossName === "confidence" && this.chosen.threshold !== null;
    document.getElementById("explore-line").hidden = !hasLine;
    document.getElementById("explore-directions").hidden = acrossName === "confidence";
    if (acrossName !== "confidence") this.classNumbers(pen, color);
    else if (hasLine) {
      const at = left + this.chosen.threshold * wide;
      pen.setLineDash([5, 4]);
      pen.beginPath();
      pen.moveTo(at, 0);
      pen.lineTo(at, box.height - bottom);
      pen.stroke();
    }
  }

  /** Return for each axis its name, and a function from a row to 0..1, or NaN for an image without coordinates. */
  axes() {
    const { pool } = this, plane = this.form.elements.up.value;
    if (plane === "embedding") {
      const share = (values) => (row) => (values[row] ? (values[row] - 1) / 65534 : NaN);
      return { across: share(pool.east), up: share(pool.north), acrossName: "first direction", upName: "second direction" };
    }
    const across = (row) => pool.confidence[row], acrossName = "confidence";
    if (plane === "entropy") return { across, up: (row) => pool.entropy[row], acrossName, upName: "entropy" };
    const seen = pool.distance.filter((v) => v > 0).map(Math.log).sort();
    const low = seen[0] ?? 0, high = seen[seen.length - 1] ?? 1;
    return { across, up: (row) => (Math.log(pool.distance[row]) - low) / (high - low || 1), acrossName, upName: "distance (log)" };
  }

  /** Draw the number of each class at the mean of its dots. */
  classNumbers(pen, color) {
    const { pool } = this, sums = Array.from({ length: pool.classes }, () => [0, 0, 0]);
    for (let row = 0; row < pool.prediction.length; row++)
      if (pool.east[row]) {
        const sum = sums[pool.prediction[row]];
        sum[0] += this.x(row);
        sum[1] += this.y(row);
        sum[2]++;
      }
    pen.font = "bold 13px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.lineWidth = 4;
    pen.strokeStyle = color("--paper");
    const few = [...sums.keys()].filter((k) => sums[k][2]).sort((a, b) => sums[b][2] - sums[a][2]).slice(0, 100);
    for (const k of few) {
      const [x, y, n] = sums[k];
      pen.strokeText(k, x / n, y / n);
      pen.fillText(k, x / n, y / n);
    }
  }

  /** Show the image of the dot under the pointer, with a picture if the page has it. */
  point(event) {
    const { pool } = this, box = this.plane.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, least = 100;
    for (let row = 0; row < pool.confidence.length; row++) {
      const away = (this.x(row) - x) ** 2 + (this.y(row) - y) ** 2;
      const bonus = this.ofRow.has(row) ? 30 : 0;
      if (away - bonus < least) [best, least] = [row, away - bonus];
    }
    const told = document.getElementById("explore-dot");
    told.replaceChildren();
    if (best < 0) return;
    if (this.ofRow.has(best)) {
      const image = this.ofRow.get(best).cloneNode();
      image.removeAttribute("data-row");
      image.loading = "eager";
      told.append(image);
    }
    const distance = pool.distance ? `, distance ${pool.distance[best].toPrecision(3)}` : "";
    told.append(`Image ${pool.row[best]}: class ${explore.named(pool, pool.prediction[best])}, confidence ${pool.confidence[best].toFixed(3)}, entropy ${pool.entropy[best].toFixed(3)}${distance}; ${pool.reasons[pool.reason[best]]}`);
  }
}
document.addEventListener("DOMContentLoaded", explore.ready);
