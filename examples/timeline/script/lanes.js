// SPDX-License-Identifier: MPL-2.0
// The timeline: a ruler and a lane a speaker, drawn on two canvases of the size that is in view.

const scroller = byId('scroller');
const wide = byId('wide');
const pinned = byId('pinned');
const picture = byId('picture');
const axis = byId('axis');
const AXIS = 36;
const MOST = 400; // pixels a second
const WIDEST = 12e6; // pixels, which every browser can still scroll
let scale = 0; // pixels a second; 0: all in view
let paint = {};

const height = lanes.length * rowHeight;
picture.setAttribute('aria-label', `${count(lanes.length, 'lane', 'lanes')}: who speaks when. `
  + 'The text below says the same; the names at the left lead to turns');

const width = () => scroller.clientWidth;
const fitted = () => width() / total;
const perSecond = () => Math.max(scale, fitted());

/** Sizes, after anything about them has changed. */
function layOut() {
  const content = Math.max(width(), perSecond() * total);
  wide.style.width = content > width() + 0.5 ? `${content}px` : '100%';
  pinned.style.width = `${width()}px`;
  wide.style.height = pinned.style.height = `${height}px`;
  size(picture, width(), height);
  size(axis, byId('ruler').clientWidth, AXIS);
  byId('seek').max = total;
  byId('length').textContent = clock(total);
  byId('out').disabled = byId('fit').disabled = perSecond() <= fitted() * 1.001;
  byId('in').disabled = perSecond() >= most() * 0.999;
  document.documentElement.style.setProperty('--stage', `${stuck()?.offsetHeight ?? 0}px`);
  redraw();
}

const most = () => Math.max(fitted(), Math.min(MOST, WIDEST / total));

function size(canvas, cssWidth, cssHeight) {
  const dense = Math.min(devicePixelRatio || 1, 3);
  const [w, h] = [Math.max(1, Math.round(cssWidth * dense)), Math.round(cssHeight * dense)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  canvas.style.width = `${cssWidth}px`;
  canvas.style.height = `${cssHeight}px`;
  canvas.getContext('2d').setTransform(dense, 0, 0, dense, 0, 0);
}

/** Zooms, the time at `x` of the view staying where it is. */
function zoom(factor, x) {
  const before = perSecond();
  const after = Math.min(Math.max(before * factor, fitted()), most());
  const left = (scroller.scrollLeft + x) / before;
  scale = after <= fitted() * 1.001 ? 0 : after;
  layOut();
  scroller.scrollLeft = left * perSecond() - x;
  redraw();
}

/** Where buttons and keys zoom: about the position if it is in view. */
function anchor() {
  const x = position * perSecond() - scroller.scrollLeft;
  return x >= 0 && x <= width() ? x : width() / 2;
}

function keepInView(jumped) {
  const x = position * perSecond();
  const [left, right] = [scroller.scrollLeft, scroller.scrollLeft + width()];
  if ((jumped || (follows && sound && !sound.paused)) && (x < left || x > right - 8)) {
    scroller.scrollLeft = x - width() * (jumped ? 0.4 : 0.08);
  }
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  const [light, chroma] = [value('--light'), value('--chroma')];
  paint = {
    ink: value('--ink'), soft: value('--soft'), line: value('--line'), lane: value('--lane'),
    paper: value('--paper'), hit: value('--hit-here'), accent: value('--accent'),
    // Canvases do not know calc() in every browser.
    own: lanes.map((_, n) => {
      const probe = make('i');
      probe.style.color = colour(n, light, chroma);
      document.body.append(probe);
      const resolved = getComputedStyle(probe).color;
      probe.remove();
      return resolved;
    }),
    font: getComputedStyle(document.body).fontFamily,
  };
}

let isDue = false;
function redraw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    drawAxis();
    drawLanes();
    drawPlayhead();
  });
}

const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];

function drawAxis() {
  const pen = axis.getContext('2d');
  const [w, pps, left] = [width(), perSecond(), scroller.scrollLeft];
  pen.clearRect(0, 0, w, AXIS);
  const step = STEPS.find((s) => s * pps >= 64) ?? Math.ceil(64 / pps / 86400) * 86400;
  pen.font = `11px ${paint.font}`;
  pen.textBaseline = 'middle';
  const places = step < 1 ? 1 : 0;
  for (let n = Math.floor(left / pps / step); n * step * pps < left + w; n++) {
    const x = Math.round(n * step * pps - left) + 0.5;
    pen.fillStyle = paint.line;
    pen.fillRect(x - 0.5, AXIS - 12, 1, 12);
    for (let part = 1; part < 5; part++) pen.fillRect(Math.round(x + (part * step * pps) / 5) - 0.5, AXIS - 6, 1, 6);
    pen.fillStyle = paint.soft;
    pen.fillText(clock(n * step, places), x + 4, AXIS / 2 - 3);
  }
  pen.fillStyle = paint.hit;
  for (const hit of hits) {
    const x = words[hit.first].start * pps - left;
    if (x < -6 || x > w + 6) continue;
    const big = hit === hits[here] ? 6 : 3.5;
    pen.beginPath();
    pen.moveTo(x - big, AXIS - big * 2);
    pen.lineTo(x + big, AXIS - big * 2);
    pen.lineTo(x, AXIS);
    pen.fill();
  }
}

function drawLanes() {
  const pen = picture.getContext('2d');
  const [w, pps, left] = [width(), perSecond(), scroller.scrollLeft];
  const [from, to] = [left / pps, (left + w) / pps];
  const isNear = pps >= 14;
  const gap = rowHeight >= 36 ? 7 : 3;
  pen.clearRect(0, 0, w, height);
  pen.font = `12px ${paint.font}`;
  pen.textBaseline = 'middle';
  lanes.forEach((lane, n) => {
    const top = n * rowHeight;
    if (n % 2) {
      pen.fillStyle = paint.lane;
      pen.globalAlpha = 0.55;
      pen.fillRect(0, top, w, rowHeight);
      pen.globalAlpha = 1;
    }
    pen.fillStyle = paint.line;
    if (n) pen.fillRect(0, top, w, 1);
    const [y, h] = [top + gap, rowHeight - 2 * gap];
    const withWords = isNear && lane.words.length > 0;

    pen.fillStyle = paint.own[n];
    pen.globalAlpha = withWords ? 0.22 : 1;
    for (const turn of lane.turns) {
      if (turn.end < from || turn.start > to) continue;
      const x = turn.start * pps - left;
      const long = Math.max((turn.end - turn.start) * pps, 1.5);
      pen.beginPath();
      // Not from far outside: a bar may be millions of pixels long.
      const [begin, end] = [Math.max(x, -20), Math.min(x + long, w + 20)];
      pen.roundRect(begin, y, end - begin, h, Math.min(4, (end - begin) / 2));
      pen.fill();
    }
    pen.globalAlpha = 1;
    if (!withWords) return;

    for (let i = firstOf(lane.words, (v) => v.start >= from - longest); i < lane.words.length; i++) {
      const word = lane.words[i];
      if (word.start > to) break;
      const x = word.start * pps - left;
      const long = Math.max((word.end - word.start) * pps - 1.5, 2);
      if (x + long < 0) continue;
      pen.globalAlpha = word.confidence < UNSURE ? 0.45 : 0.95;
      pen.fillStyle = paint.own[n];
      pen.beginPath();
      pen.roundRect(x, y + 3, long, h - 6, Math.min(3, long / 2));
      pen.fill();
      pen.globalAlpha = 1;
      if (long < 14 || h < 14) continue;
      word.width ??= pen.measureText(word.text.trim()).width;
      if (word.width > long - 4) continue;
      pen.fillStyle = word.confidence < UNSURE ? paint.ink : paint.paper;
      pen.fillText(word.text.trim(), x + (long - word.width) / 2, y + h / 2 + 0.5);
    }
  });

  for (const hit of hits) {
    const [first, last] = [words[hit.first], words[hit.last]];
    const x = first.start * pps - left;
    const long = Math.max((last.end - first.start) * pps, 3);
    if (x + long < 0 || x > w) continue;
    pen.strokeStyle = pen.fillStyle = paint.hit;
    const isHere = hit === hits[here];
    if (isHere) pen.fillRect(x, 0, 1.5, height);
    const [y, h] = [first.lane * rowHeight + gap - 2, rowHeight - 2 * gap + 4];
    if (long >= 8) {
      pen.lineWidth = isHere ? 3 : 2;
      pen.strokeRect(x, y + 1, long, h - 2);
    } else {
      // Many lie close together: the turns stay in sight above them.
      const low = isHere ? h : Math.max(5, h / 3);
      pen.fillRect(x, y + h - low, long, low);
    }
  }
}

function drawPlayhead() {
  const x = position * perSecond() - scroller.scrollLeft;
  byId('playhead').style.transform = `translateX(${x}px)`;
}

const timeAt = (x) => Math.min(total, Math.max(0, (scroller.scrollLeft + x) / perSecond()));

/** The turn that lies at a point of the picture, narrow ones with a little beside them. */
function turnAt(x, y) {
  const lane = lanes[Math.floor(y / rowHeight)];
  const [time, slack] = [timeAt(x), 3 / perSecond()];
  const turn = lane?.turns.find((t) => t.start - slack <= time && time <= t.end + slack);
  return turn && { lane, turn };
}

const placeIn = (element, event) => {
  const box = element.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

picture.addEventListener('click', (event) => {
  const [x, y] = placeIn(picture, event);
  const found = turnAt(x, y)?.turn;
  // A narrow bar cannot be hit at its start: it is meant as a whole.
  const isNarrow = found && (found.end - found.start) * perSecond() < 24;
  seek(isNarrow ? found.start : timeAt(x), { show: true });
});
picture.addEventListener('pointermove', (event) => {
  if (event.pointerType === 'touch') return;
  const [x, y] = placeIn(picture, event);
  const found = turnAt(x, y);
  const time = clock(timeAt(x), perSecond() > 20 ? 1 : 0);
  tip(event, found ? `${time} · ${found.lane.name}, ${clock(found.turn.start)}–${clock(found.turn.end)}` : time);
});
picture.addEventListener('pointerleave', () => { byId('tip').hidden = true; });

function tip(event, shown) {
  const bubble = byId('tip');
  bubble.textContent = shown;
  bubble.hidden = false;
  const [x, y] = placeIn(byId('timeline'), event);
  const most = byId('timeline').clientWidth - bubble.offsetWidth - 4;
  const above = y - bubble.offsetHeight - 10;
  bubble.style.transform = `translate(${Math.max(4, Math.min(x + 12, most))}px, ${above < 2 ? y + 18 : above}px)`;
}

const scrub = (event) => seek(timeAt(placeIn(axis, event)[0]), { show: true });
axis.addEventListener('pointerdown', (event) => {
  axis.setPointerCapture(event.pointerId);
  scrub(event);
});
axis.addEventListener('pointermove', (event) => {
  if (axis.hasPointerCapture(event.pointerId)) scrub(event);
});

const wheel = (event) => {
  // Sideways pans; where the lanes do not fit, up and down scrolls them and Ctrl (a pinch) zooms.
  const tall = byId('lanes').scrollHeight > byId('lanes').clientHeight + 1 && event.currentTarget === scroller;
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY) || (tall && !event.ctrlKey)) return;
  event.preventDefault();
  const pixels = event.deltaMode === 1 ? event.deltaY * 16 : event.deltaY;
  zoom(Math.exp(-Math.max(-300, Math.min(300, pixels)) * (event.ctrlKey ? 0.01 : 0.002)), placeIn(axis, event)[0]);
};
scroller.addEventListener('wheel', wheel, { passive: false });
byId('ruler').addEventListener('wheel', wheel, { passive: false });
scroller.addEventListener('scroll', redraw, { passive: true });
byId('in').addEventListener('click', () => zoom(2, anchor()));
byId('out').addEventListener('click', () => zoom(0.5, anchor()));
byId('fit').addEventListener('click', () => zoom(0, 0));
