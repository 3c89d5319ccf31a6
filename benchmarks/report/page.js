"use strict";
// The evidence page: tables that sort and tell their cells, and players that show the same clip and frame.
const $ = id => document.getElementById(id);
const make = (tag, text, values) => Object.assign(document.createElement(tag), {textContent: text || ""}, values);

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
  const state = {clip: 0, frame: 0, isPlaying: false, start: 0, zoom: 1, x: 0.5, y: 0.5, split: 0.5, a: data.compared[0], b: data.compared[1]};
  let screens = [], order = data.names.map((_, i) => i), fps = 24, frames = 1;

  // A small clip is one picture, its frames one below the other; a larger one is a video, which is sought.
  const load = (entry, draw) => {
    const screen = {entry, isReady: false};
    if (entry.gap) return screen;
    const ready = () => { screen.isReady = true; draw(); };
    screen.fail = () => { screen.entry = {gap: `${data.folder}/${entry.strip || entry.mp4} is not beside this page`}; listPlayers(); };
    if (entry.strip) {
      screen.image = Object.assign(new Image(), {onload: ready, onerror: screen.fail, src: `${data.folder}/${entry.strip}`});
    } else {
      screen.video = make("video", "", {muted: true, playsInline: true, preload: "auto", onseeked: draw, onerror: screen.fail,
        onloadeddata: () => { ready(); seek(screen); }});
      use(screen, entry.preview || entry.mp4);
    }
    return screen;
  };
  const use = async (screen, file) => {  // whole: not every server sends the part that is sought
    const path = `${data.folder}/${file}`;
    if (screen.file === file) return;
    screen.file = file;
    if (location.protocol === "file:") { screen.video.src = path; return; }
    const answer = await fetch(path).catch(() => ({}));
    if (!answer.ok) return screen.fail();
    URL.revokeObjectURL(screen.video.src);
    screen.video.src = URL.createObjectURL(await answer.blob());
  };
  const seek = ({video, entry}) => {
    const target = (Math.min(state.frame, entry.frames - 1) + 0.5) / entry.fps;
    if (!state.isPlaying) {
      video.pause();
      if (Math.abs(video.currentTime - target) > 1e-4) video.currentTime = target;
    } else {
      video.playbackRate = Number($("speed").value);
      if (video.paused) video.play().catch(() => {});
      if (Math.abs(video.currentTime - target) > 1.5 / entry.fps && !video.seeking) video.currentTime = target;
    }
  };

  const paint = (context, {entry, image, video, isReady}, width, height) => {
    if (!isReady) return;
    const [w, h] = image ? [entry.width, entry.height] : [video.videoWidth, video.videoHeight];
    const [sw, sh] = [w / state.zoom, h / state.zoom], left = state.x * w - sw / 2, top = state.y * h - sh / 2;
    const frame = image ? Math.min(state.frame, entry.frames - 1) * h : 0;
    context.imageSmoothingEnabled = width < sw;
    context.drawImage(image || video, left, top + frame, sw, sh, 0, 0, width, height);
  };
  const fitted = (canvas, entry) => {  // sharp on the screen, and in the clip's shape
    const width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    const height = Math.round(width * (entry.height || 1) / (entry.width || 1));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    return [context, width, height];
  };
  const draw = () => {
    for (const screen of screens) {
      if (screen.canvas?.isConnected) paint(...[fitted(screen.canvas, screen.entry)].flatMap(([c, w, h]) => [c, screen, w, h]));
    }
    const [a, b] = [screens[state.a], screens[state.b]];
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
    $("at").textContent = `${state.frame + 1} of ${frames}`;
    $("frame").value = state.frame;
    $("zoom").textContent = `${state.zoom}×`;
    $("play").textContent = state.isPlaying ? "❚❚ pause" : "▶ play";
  };

  const show = frame => {
    state.frame = (frame % frames + frames) % frames;
    screens.filter(screen => screen.isReady && screen.video).forEach(seek);
    draw();
  };
  const play = isPlaying => {
    if (state.isPlaying === isPlaying) return;
    Object.assign(state, {isPlaying, start: performance.now() - 1000 * state.frame / fps / Number($("speed").value)});
    const tick = now => {  // one clock for all
      if (!state.isPlaying) return;
      show(Math.floor((now - state.start) / 1000 * fps * Number($("speed").value)));
      requestAnimationFrame(tick);
    };
    show(state.frame);
    if (isPlaying) requestAnimationFrame(tick);
  };
  const step = count => { play(false); show(state.frame + count); };
  const look = (zoom, x = state.x, y = state.y) => {
    state.zoom = Math.min(32, Math.max(1, zoom));
    const room = 0.5 / state.zoom, within = value => Math.min(1 - room, Math.max(room, value));
    Object.assign(state, {x: within(x), y: within(y)});
    for (const screen of screens) {  // a preview has not all pixels
      if (screen.entry.preview) use(screen, state.zoom > 1 ? screen.entry.mp4 : screen.entry.preview);
    }
    document.body.classList.toggle("zoomed", state.zoom > 1);
    draw();
  };
  const wipe = split => { state.split = Math.min(1, Math.max(0, split)); $("split").value = 1000 * state.split; draw(); };

  const listPlayers = () => {
    $("players").replaceChildren(...screens.map((screen, i) => {
      const {entry} = screen, figure = make("figure"), caption = make("figcaption");
      const side = i === state.a ? "A" : i === state.b ? "B" : "";
      caption.append(make("b", data.labels[i]), side ? make("span", side, {className: "side"}) : "");
      if (entry.gap) {
        figure.append(make("div", `clip ${data.names[state.clip]}: ${entry.gap}`, {className: "gap"}));
      } else {
        screen.canvas = figure.appendChild(make("canvas", "", {ariaLabel: `${data.labels[i]}, clip ${data.names[state.clip]}`}));
        screen.canvas.setAttribute("role", "img");
        drag(screen.canvas);
        const links = caption.appendChild(make("span", "", {className: "links"}));
        links.append(make("a", `mp4, ${entry.size}`, {href: `${data.folder}/${entry.mp4}`}), entry.source ? make("a", "lossless", {href: entry.source}) : "");
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
    for (const {video} of screens) if (video) { URL.revokeObjectURL(video.src); video.removeAttribute("src"); }
    screens = data.clips.map(row => load(row[clip], () => draw()));
    const present = screens.map(screen => screen.entry).filter(entry => !entry.gap);
    frames = Math.max(1, ...present.map(entry => entry.frames));
    fps = present[0]?.fps || 24;
    $("frame").max = frames - 1;
    $("name").value = clip;
    state.frame = Math.min(state.frame, frames - 1);
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

  const drag = canvas => {
    const place = event => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    let last = null;
    canvas.onpointerdown = event => { last = place(event); canvas.setPointerCapture(event.pointerId); };
    canvas.onpointerup = canvas.onpointercancel = () => { last = null; };
    canvas.onpointermove = event => {
      if (!last) return;
      const [x, y] = place(event);
      if (canvas.id && state.zoom === 1) wipe(x);
      else look(state.zoom, state.x - (x - last[0]) / state.zoom, state.y - (y - last[1]) / state.zoom);
      last = [x, y];
    };
    canvas.ondblclick = event => {
      const [x, y] = place(event);
      look(2 * state.zoom, state.x + (x - 0.5) / state.zoom, state.y + (y - 0.5) / state.zoom);
    };
  };

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
  drag($("wipe"));
  choose(0);
  compare(state.a, state.b);
  if (frames / fps < 1) $("speed").value = "0.125";
}
