// Several clips at the same frame. A small clip is one picture, its frames one below the other; a larger one is a video,
// which is sought. folder: of the files; speed(): of playing; draw(): shows the screens; lost(): a file is not there.
const $ = id => document.getElementById(id);
const make = (tag, text, values) => Object.assign(document.createElement(tag), {textContent: text || ""}, values);

const players = ({folder, speed, draw, lost}) => {
  const state = {frame: 0, isPlaying: false, start: 0, zoom: 1, x: 0.5, y: 0.5};
  const player = {state, screens: [], fps: 24, frames: 1};

  const load = entry => {
    const screen = {entry, isReady: false};
    if (entry.gap) return screen;
    const ready = () => { screen.isReady = true; draw(); };
    screen.fail = () => { screen.entry = {gap: `${folder}/${entry.strip || entry.mp4} is not beside this page`}; lost(); };
    if (entry.strip) {
      screen.image = Object.assign(new Image(), {onload: ready, onerror: screen.fail, src: `${folder}/${entry.strip}`});
    } else {
      screen.video = make("video", "", {muted: true, playsInline: true, preload: "auto", onseeked: draw, onerror: screen.fail,
        onloadeddata: () => { ready(); seek(screen); }});
      use(screen, entry.preview || entry.mp4);
    }
    return screen;
  };
  const use = async (screen, file) => {  // whole: not every server sends the part that is sought
    const path = `${folder}/${file}`;
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
      video.playbackRate = speed();
      if (video.paused) video.play().catch(() => {});
      if (Math.abs(video.currentTime - target) > 1.5 / entry.fps && !video.seeking) video.currentTime = target;
    }
  };

  player.open = entries => {
    for (const {video} of player.screens) if (video) { URL.revokeObjectURL(video.src); video.removeAttribute("src"); }
    player.screens = entries.map(load);
    const present = entries.filter(entry => !entry.gap);
    player.frames = Math.max(1, ...present.map(entry => entry.frames));
    player.fps = present[0]?.fps || 24;
    state.frame = Math.min(state.frame, player.frames - 1);
  };
  player.paint = (context, {entry, image, video, isReady}, width, height) => {
    if (!isReady) return;
    const [w, h] = image ? [entry.width, entry.height] : [video.videoWidth, video.videoHeight];
    const [sw, sh] = [w / state.zoom, h / state.zoom], left = state.x * w - sw / 2, top = state.y * h - sh / 2;
    const frame = image ? Math.min(state.frame, entry.frames - 1) * h : 0;
    context.imageSmoothingEnabled = width < sw;
    context.drawImage(image || video, left, top + frame, sw, sh, 0, 0, width, height);
  };
  player.fitted = (canvas, entry) => {  // sharp on the screen, and in the clip's shape
    const width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    const height = Math.round(width * (entry.height || 1) / (entry.width || 1));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    return [context, width, height];
  };
  player.show = frame => {
    state.frame = (frame % player.frames + player.frames) % player.frames;
    player.screens.filter(screen => screen.isReady && screen.video).forEach(seek);
    draw();
  };
  player.play = isPlaying => {
    if (state.isPlaying === isPlaying) return;
    Object.assign(state, {isPlaying, start: performance.now() - 1000 * state.frame / player.fps / speed()});
    const tick = now => {  // one clock for all
      if (!state.isPlaying) return;
      player.show(Math.floor((now - state.start) / 1000 * player.fps * speed()));
      requestAnimationFrame(tick);
    };
    player.show(state.frame);
    if (isPlaying) requestAnimationFrame(tick);
  };
  player.step = count => { player.play(false); player.show(state.frame + count); };
  player.look = (zoom, x = state.x, y = state.y) => {
    state.zoom = Math.min(32, Math.max(1, zoom));
    const room = 0.5 / state.zoom, within = value => Math.min(1 - room, Math.max(room, value));
    Object.assign(state, {x: within(x), y: within(y)});
    for (const screen of player.screens) {  // a preview has not all pixels
      if (screen.entry.preview) use(screen, state.zoom > 1 ? screen.entry.mp4 : screen.entry.preview);
    }
    document.body.classList.toggle("zoomed", state.zoom > 1);
    draw();
  };
  // Dragging a canvas moves all; with wipe(x), dragging at zoom 1 does that instead. A double click enlarges there.
  player.drag = (canvas, wipe) => {
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
      if (wipe && state.zoom === 1) wipe(x);
      else player.look(state.zoom, state.x - (x - last[0]) / state.zoom, state.y - (y - last[1]) / state.zoom);
      last = [x, y];
    };
    canvas.ondblclick = event => {
      const [x, y] = place(event);
      player.look(2 * state.zoom, state.x + (x - 0.5) / state.zoom, state.y + (y - 0.5) / state.zoom);
    };
  };
  return player;
};
