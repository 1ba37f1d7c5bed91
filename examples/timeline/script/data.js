// SPDX-License-Identifier: MPL-2.0
// What is shown, and what everything else is made with: times, colours, elements.

// --- The data --------------------------------------------------------------------------------------

const data = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);

/** An element with a class and a text: the one way in which data comes onto the page. */
function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

const JUMP = 5; // seconds
const UNSURE = 50; // per cent of confidence, below which a word is marked
const NOBODY = data.speakers.length; // the lane of words without a speaker
const isStill = matchMedia('(prefers-reduced-motion: reduce)');

/** All words in the order of the text: times in seconds, lane, and where they are on the page. */
const words = [];
for (const paragraph of data.paragraphs) {
  paragraph.first = words.length;
  paragraph.lane = paragraph.speaker ?? NOBODY;
  for (const [text, start, end, confidence] of paragraph.words) {
    words.push({ text, start: start / 1000, end: end / 1000, confidence, lane: paragraph.lane, paragraph });
  }
}
/** The same in the order of time: people who speak at once have their words apart in the text. */
const inTime = [...words].sort((a, b) => a.start - b.start);
const longest = Math.min(30, words.reduce((most, w) => Math.max(most, w.end - w.start), 0));

const lanes = data.speakers.map((speaker) => ({ name: speaker.name, id: speaker.id, turns: [], words: [] }));
if (words.some((w) => w.lane === NOBODY) || lanes.length === 0) {
  lanes.push({ name: lanes.length === 0 ? 'Words' : 'no speaker', id: '', turns: [], words: [] });
}
for (const [speaker, start, end] of data.turns) {
  lanes[speaker].turns.push({ start: start / 1000, end: end / 1000 });
}
for (const word of inTime) lanes[word.lane].words.push(word);
for (const lane of lanes) {
  // Who has no turns is drawn by runs of words.
  lane.hasTurns = lane.turns.length > 0;
  if (!lane.hasTurns) {
    for (const word of lane.words) {
      const last = lane.turns.at(-1);
      if (last && word.start - last.end < 0.6) last.end = Math.max(last.end, word.end);
      else lane.turns.push({ start: word.start, end: word.end });
    }
  }
  lane.talk = lane.turns.reduce((sum, turn) => sum + turn.end - turn.start, 0);
}
const talk = lanes.reduce((sum, lane) => sum + lane.talk, 0);

let total = Math.max(data.duration / 1000, 0.001);

/** Seconds in which two or more speak. */
function overlap() {
  const edges = lanes.flatMap((l) => (l.hasTurns ? l.turns : [])).flatMap((t) => [[t.start, 1], [t.end, -1]]);
  edges.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let sum = 0, speaking = 0, since = 0;
  for (const [time, step] of edges) {
    if (speaking > 1) sum += time - since;
    speaking += step;
    since = time;
  }
  return sum;
}

/** 1:02, 1:02:03, and with places 1:02.5 */
function clock(seconds, places = 0) {
  const unit = 10 ** places;
  const whole = Math.floor(Math.max(0, seconds) * unit + 1e-6);
  const s = Math.floor(whole / unit);
  const two = (n) => String(n).padStart(2, '0');
  const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  const part = places ? `.${String(whole % unit).padStart(places, '0')}` : '';
  return (h ? `${h}:${two(m)}` : `${m}`) + `:${two(s % 60)}${part}`;
}

/** Place of the first of a sorted list for which `is` holds. */
function firstOf(list, is) {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (is(list[middle])) high = middle;
    else low = middle + 1;
  }
  return low;
}

const count = (n, one, many) => `${n.toLocaleString('en')} ${n === 1 ? one : many}`;

// --- Colours ---------------------------------------------------------------------------------------

// Neighbours in the list are far apart; the second dozen is lighter or darker.
const HUES = [258, 40, 150, 325, 85, 205, 10, 290, 175, 60, 235, 120];

function colour(lane, light, chroma) {
  // Grey for those that stand beside known speakers.
  if (lane === NOBODY && NOBODY > 0) return `oklch(${light} 0.015 260)`;
  const round = Math.floor(lane / HUES.length);
  const shift = [0, -0.11, 0.09][round % 3];
  return `oklch(calc(${light} + ${shift}) ${chroma} ${(HUES[lane % HUES.length] + round * 15) % 360})`;
}
const ownColour = (element, lane) =>
  element.style.setProperty('--own', colour(lane, 'var(--light)', 'var(--chroma)'));
