// The evidence page: tables that sort and tell their cells, and players that show the same clip and frame.

// ---- tables

for (const section of document.querySelectorAll("section.table")) {
  const [groups, heads] = section.querySelectorAll("thead tr"), body = section.querySelector("tbody");
  const original = [...body.rows], reading = section.querySelector(".reading");
  const parts = [];  // a row and those that are indented below it, as ours below the paper's
  for (const row of original) row.cells[0].textContent.startsWith("\u2003") && parts.length ? parts.at(-1).push(row) : parts.push([row]);
  const value = ([row], i) => i ? parseFloat(row.cells[i].dataset.value ?? row.cells[i].textContent.replace("−", "-")) : row.cells[0].textContent;
  const close = () => {
    body.querySelectorAll(".detail").forEach(row => row.remove());
    original.forEach(row => row.cells[0].firstChild.setAttribute("aria-expanded", "false"));
  };

  const sort = (head, i) => {
    const order = {none: "ascending", ascending: "descending", descending: "none"}[head.ariaSort];
    [...heads.cells].forEach(other => { other.ariaSort = other === head ? order : "none"; });
    close();
    const sign = order === "descending" ? -1 : 1;
    const compare = (a, b) => {
      const [x, y] = [value(a, i), value(b, i)];
      return i ? (isNaN(x) - isNaN(y)) || sign * (x - y) || 0 : sign * x.localeCompare(y);
    };
    body.append(...(order === "none" ? original : [...parts].sort(compare).flat()));
    body.classList.toggle("sorted", order !== "none");
    reading.textContent = order === "none" ? "" : `Sorted by ${head.textContent}, ${order}. “Above” means the original order, which a third click brings back.`;
  };
  [...heads.cells].forEach((head, i) => head.firstChild.addEventListener("click", () => sort(head, i)));

  // a row's button opens what its cells tell
  for (const row of original) row.cells[0].firstChild.addEventListener("click", event => {
    const button = event.currentTarget, isOpen = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) return row.nextElementSibling.remove();
    const cell = make("td", "", {colSpan: row.cells.length}), list = cell.appendChild(make("dl"));
    [...row.cells].slice(1).forEach((td, i) => list.append(
      make("dt", heads.cells[i + 1].textContent), make("dd", td.dataset.detail || td.textContent)));
    row.after(make("tr", "", {className: "detail"}));
    row.nextSibling.append(cell);
  });

  // the cell under the pointer, or with the focus; arrow keys move the focus
  const tell = cell => {
    const detail = cell?.dataset.detail;
    if (detail) reading.textContent = `${cell.parentNode.cells[0].textContent}, ${heads.cells[cell.cellIndex].textContent}: ${detail}`;
  };
  const told = [...body.querySelectorAll("[data-detail]")];
  told.forEach((cell, i) => { cell.tabIndex = i ? -1 : 0; });
  for (const kind of ["pointerover", "focusin"]) body.addEventListener(kind, event => tell(event.target.closest("td")));
  body.addEventListener("keydown", event => {
    const cell = event.target, rows = [...body.rows].filter(row => row.className !== "detail");
    const [down, right] = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key] || [0, 0];
    const next = rows[rows.indexOf(cell.parentNode) + down]?.cells[cell.cellIndex + right];
    if (!(down || right) || cell.tagName !== "TD" || !next?.dataset.detail) return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    event.preventDefault();
  });

  // a box per column; a group is as wide as its columns that are shown, and the paper's are hidden at first
  const [count, boxes] = section.querySelectorAll(".columns output, .columns div"), span = [];
  [...groups.cells].slice(1).forEach(group => { for (let n = group.colSpan; n; n--) span.push(group); });
  const all = span.map((group, i) => {
    const head = heads.cells[i + 1], box = make("input", "", {type: "checkbox", checked: head.className !== "aside"});
    boxes.appendChild(make("label")).append(box, ` ${head.textContent}`);
    box.addEventListener("change", () => update());
    return box;
  });
  const update = () => {
    close();
    all.forEach((box, i) => [heads, ...original].forEach(row => { row.cells[i + 1].hidden = !box.checked; }));
    for (const group of new Set(span)) {
      const shown = all.filter((box, i) => span[i] === group && box.checked).length;
      Object.assign(group, {colSpan: shown || 1, hidden: !shown});
    }
    count.textContent = `${all.filter(box => box.checked).length} of ${all.length}`;
  };
  update();
}

// ---- players

const data = $("data") && JSON.parse($("data").textContent);
if (data) {
  const player = players({folder: data.folder, speed: () => Number($("speed").value), draw: () => draw(), lost: () => listPlayers()});
  const {paint, fitted, play, step, look} = player;
  const state = Object.assign(player.state, {clip: 0, split: 0.5, a: data.compared[0], b: data.compared[1]});
  let order = data.names.map((_, i) => i);

  const draw = () => {
    for (const screen of player.screens) {
      if (screen.canvas?.isConnected) paint(...[fitted(screen.canvas, screen.entry)].flatMap(([c, w, h]) => [c, screen, w, h]));
    }
    const [a, b] = [player.screens[state.a], player.screens[state.b]];
    const [context, width, height] = fitted($("wipe"), a.entry.gap ? b.entry : a.entry), edge = Math.round(state.split * width);
    paint(context, a, width, height);
    context.save();
    context.beginPath();
    context.rect(edge, 0, width, height);
    context.clip();
    context.clearRect(edge, 0, width, height);
    paint(context, b, width, height);
    context.restore();
    context.fillStyle = "#fff";
    context.fillRect(edge - 2, 0, 4, height);
    context.fillStyle = "#000";
    context.fillRect(edge - 1, 0, 2, height);
    $("wipe").ariaLabel = `${data.labels[state.a]} left of ${data.labels[state.b]}, clip ${data.names[state.clip]}, frame ${state.frame + 1}`;
    $("at").textContent = `${state.frame + 1} of ${player.frames}`;
    $("frame").value = state.frame;
    $("zoom").textContent = `${state.zoom}×`;
    $("play").textContent = state.isPlaying ? "❚❚ pause" : "▶ play";
  };

  const wipe = split => { state.split = Math.min(1, Math.max(0, split)); $("split").value = 1000 * state.split; draw(); };

  const listPlayers = () => {
    $("players").replaceChildren(...player.screens.map((screen, i) => {
      const {entry} = screen, figure = make("figure"), caption = make("figcaption");
      const side = i === state.a ? "A" : i === state.b ? "B" : "";
      caption.append(make("b", data.labels[i]), side ? make("span", side, {className: "side"}) : "");
      if (entry.gap) {
        figure.append(make("div", `clip ${data.names[state.clip]}: ${entry.gap}`, {className: "gap"}));
      } else {
        screen.canvas = figure.appendChild(make("canvas", "", {ariaLabel: `${data.labels[i]}, clip ${data.names[state.clip]}`}));
        screen.canvas.setAttribute("role", "img");
        player.drag(screen.canvas);
        const links = caption.appendChild(make("span", "", {className: "links"}));
        links.append(entry.mp4 ? make("a", `mp4, ${entry.size}`, {href: `${data.folder}/${entry.mp4}`}) : "", entry.source ? make("a", "lossless", {href: entry.source}) : "");
      }
      figure.append(caption);
      return figure;
    }));
    $("of-a").textContent = `A ${data.labels[state.a]}`;
    $("of-b").textContent = `${data.labels[state.b]} B`;
    const levels = data.differences[state.clip][state.a][state.b];
    $("measured").textContent = levels === null ? "" : `differ by ${levels.toFixed(2)} of 255`;
    draw();
  };
  const choose = clip => {
    state.clip = clip;
    player.open(data.clips.map(row => row[clip]));
    $("frame").max = player.frames - 1;
    $("name").value = clip;
    listPlayers();
  };
  const listClips = () => {
    const levels = clip => data.differences[clip][state.a][state.b] ?? -1;
    order = data.names.map((_, i) => i);
    if ($("order").value) order.sort((i, j) => levels(j) - levels(i));
    $("name").replaceChildren(...order.map(i => make("option", $("order").value && levels(i) >= 0 ? `${data.names[i]} (${levels(i).toFixed(2)})` : data.names[i], {value: i})));
    $("name").value = state.clip;
  };
  const compare = (a, b) => {
    Object.assign(state, {a, b});
    [$("a").value, $("b").value] = [a, b];
    listClips();
    listPlayers();
  };
  const move = count => choose(order[(order.indexOf(state.clip) + count + order.length) % order.length]);

  const actions = {
    " ": () => play(!state.isPlaying), ArrowLeft: () => step(-1), ArrowRight: () => step(1), p: () => move(-1), n: () => move(1),
    "[": () => wipe(state.split - 0.05), "]": () => wipe(state.split + 0.05), s: () => compare(state.b, state.a),
    "+": () => look(2 * state.zoom), "=": () => look(2 * state.zoom), "-": () => look(state.zoom / 2), 0: () => look(1),
  };
  for (const [id, key] of Object.entries({play: " ", back: "ArrowLeft", next: "ArrowRight", swap: "s", out: "-", in: "+", fit: "0"})) $(id).onclick = actions[key];
  addEventListener("keydown", event => {
    const isTaken = event.target.closest("input, select, td") || (event.target.closest("button, summary, a") && " Enter".includes(event.key));
    if (isTaken || event.ctrlKey || event.metaKey || event.altKey || !actions[event.key]) return;
    actions[event.key]();
    event.preventDefault();
  });
  $("frame").oninput = () => step($("frame").value - state.frame);
  $("split").oninput = () => wipe($("split").value / 1000);
  $("name").onchange = () => choose(Number($("name").value));
  $("order").onchange = () => { listClips(); if ($("order").value) choose(order[0]); };
  $("a").onchange = $("b").onchange = () => compare(Number($("a").value), Number($("b").value));
  $("speed").onchange = () => { if (state.isPlaying) { play(false); play(true); } };
  for (const id of ["a", "b"]) $(id).append(...data.labels.map((label, i) => make("option", label, {value: i})));
  addEventListener("resize", draw);
  player.drag($("wipe"), wipe);
  choose(0);
  compare(state.a, state.b);
  if (player.frames / player.fps < 1) $("speed").value = "0.125";
}
