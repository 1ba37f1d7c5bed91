// SPDX-License-Identifier: MPL-2.0
// Shows what /events tells. All text is anybody's: it is set as textContent and nothing else.
'use strict';
(() => {

// A longer silence begins a paragraph, and so does a line when there are this many characters.
const PAUSE_SECONDS = 4;
const PARAGRAPH = 420;
// So many entries stay in the page; the server has a bound of its own.
const ENTRIES_MAX = 4000;
const ENTRIES_MORE = 200;
// The server says something every ten seconds: after this the connection is dead.
const SILENCE_MS = 25_000;
const AGAIN_MS = 2_000;
const LEFT_MS = 100;
// So near to its end the page counts as being at its end.
const NEAR_PIXELS = 48;

const $ = id => document.getElementById(id);
const [log, empty, jump, banner] = ['log', 'empty', 'jump', 'banner'].map($);

// Lines, notices and gaps in order; each knows its node, a line its block, too.
let entries = [];
let partial = null;
let status = {state: 'starting'};
let isConnected = false;

// --- Text ------------------------------------------------------------------------------------------

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const idOf = line => line.speaker?.id;

function clock(seconds) {
  const all = Math.floor(seconds);
  const two = n => String(n).padStart(2, '0');
  const [h, m, s] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

// Languages that are written without blanks have none between two cues either.
const unspaced = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\u3000-\u303f\uff00-\uffef]/u;
function blank(before, after) {
  const last = [...before.trimEnd()].pop() ?? '';
  return unspaced.test(last) && unspaced.test(after.trimStart()) ? '' : ' ';
}

// Whether `line` goes on in the block of the line before it.
function goesOn(before, line, length) {
  return before?.kind === 'line' && length < PARAGRAPH && line.start - before.end < PAUSE_SECONDS
    && idOf(before) === idOf(line);
}

function makeBlock(line) {
  const node = make('div', 'turn');
  const head = make('div', 'head');
  const time = make('time', '', clock(line.start));
  time.dateTime = `PT${line.start}S`;
  // Read aloud before each speaker it would be in the way.
  time.setAttribute('aria-hidden', 'true');
  const said = make('p', 'said');
  said.dir = 'auto';
  head.append(time);
  node.append(head, said);
  const block = {node, head, said, who: null, first: line};
  name(block, line.speaker);
  return block;
}

function name(block, speaker) {
  block.node.className = speaker ? `turn c${speaker.colour}` : 'turn';
  if (!speaker) {
    block.who?.remove();
    block.who = null;
  } else {
    if (!block.who) {
      block.who = make('h2', 'who');
      block.who.dir = 'auto';
      block.head.prepend(block.who);
    }
    if (block.who.textContent !== speaker.name) block.who.textContent = speaker.name;
  }
}

function addLine(line) {
  const before = entries.at(-1);
  line.kind = 'line';
  line.node = make('span', hasCaughtUp ? 'settling' : '');
  // Else it would settle once more when it is moved.
  line.node.addEventListener('animationend', () => line.node.classList.remove('settling'));
  if (line.language) line.node.lang = line.language;
  if (goesOn(before, line, before?.block?.said.textContent.length)) {
    line.block = before.block;
    line.node.textContent = blank(before.text, line.text) + line.text;
  } else {
    line.block = makeBlock(line);
    line.node.textContent = line.text;
    log.append(line.block.node);
  }
  line.block.said.append(line.node);
  entries.push(line);
}

function addMark(kind, text) {
  const node = make('p', kind, text);
  log.append(node);
  entries.push({kind, node});
}

// Puts lines into the blocks of those who spoke them, after some of them have become others'.
function regroup() {
  let [before, block, length] = [null, null, 0];
  for (const line of entries) {
    if (line.kind === 'line') {
      if (!goesOn(before, line, length)) {
        const last = before?.kind === 'line' ? block.node : before?.node;
        block = line.block.first === line ? line.block : makeBlock(line);
        if (block !== line.block) {
          if (last) last.after(block.node);
          else log.prepend(block.node);
        }
        name(block, line.speaker);
        length = 0;
      }
      if (line.block !== block) {
        line.block = block;
        line.node.textContent = (block.first === line ? '' : blank(before.text, line.text)) + line.text;
        block.said.append(line.node);
      }
      length += line.node.textContent.length;
    }
    before = line;
  }
  for (const node of [...log.querySelectorAll('.turn:not(.partial)')]) {
    if (!node.querySelector('.said > span:not(.partial)')) node.remove();
  }
}

function relabel({old, speaker, from, to}) {
  for (const line of entries) {
    const isMeant = line.kind === 'line' && idOf(line) === old
      && (from === null || line.start >= from) && (to === null || line.start < to);
    if (isMeant) line.speaker = speaker;
    // The name may be new for all that this one has said.
    else if (line.kind === 'line' && idOf(line) === speaker.id) line.speaker = speaker;
  }
  quietly(regroup);
}

function removePartial() {
  for (const node of [...log.querySelectorAll('.partial')]) node.remove();
}

// The guess at what comes next stands where it will be when it is final.
function showPartial() {
  if (!partial) return;
  const before = entries.at(-1);
  const length = before?.block?.said.textContent.length;
  // Who speaks is known later than what: until then it is taken for the one before.
  const mayGoOn = before?.kind === 'line'
    && goesOn(before, partial.speaker ? partial : {...partial, speaker: before.speaker}, length);
  let node = make('span', 'partial', partial.text);
  if (partial.language) node.lang = partial.language;
  if (mayGoOn) {
    node.textContent = blank(before.text, partial.text) + partial.text;
    before.block.said.append(node);
  } else {
    const block = makeBlock(partial);
    block.said.append(node);
    node = block.node;
    node.classList.add('partial');
    log.append(node);
  }
  node.setAttribute('aria-hidden', 'true');
}

function trim() {
  // Never under the eyes of somebody who reads above; and not for each line, because it looks at all of them.
  if (!isFollowing || entries.length <= ENTRIES_MAX + ENTRIES_MORE) return;
  for (const gone of entries.splice(0, entries.length - ENTRIES_MAX)) gone.node.remove();
  if (entries[0].block) entries[0].block.first = entries[0];
  const kept = new Set(entries.map(entry => entry.block?.node ?? entry.node));
  for (const node of [...log.children]) {
    if (!kept.has(node) && !node.classList.contains('partial')) node.remove();
  }
  $('cut').hidden = false;
}

function clear() {
  entries = [];
  partial = null;
  log.replaceChildren();
  $('cut').hidden = true;
}

// --- What is said aloud ----------------------------------------------------------------------------

// Nobody wants a whole history read out: what is there when a page comes, or comes back, is quiet.
let hasCaughtUp = false;

function announce() {
  log.setAttribute('aria-live', hasCaughtUp ? 'polite' : 'off');
}

function quietly(work) {
  log.setAttribute('aria-live', 'off');
  work();
  // A reader of screens looks when the page has been drawn.
  setTimeout(announce, 100);
}

// --- Following -------------------------------------------------------------------------------------

// A page that is loaded again begins at its end.
history.scrollRestoration = 'manual';
let isFollowing = true;
let lastY = 0;
const root = document.scrollingElement;
const wantsStillness = matchMedia('(prefers-reduced-motion: reduce)');

const left = () => root.scrollHeight - root.clientHeight - root.scrollTop;

function toEnd(smoothly) {
  // Farther than a screen is a jump: nobody reads what flies by.
  const isNear = left() < root.clientHeight;
  const behavior = smoothly && isNear && hasCaughtUp && !wantsStillness.matches ? 'smooth' : 'instant';
  window.scrollTo({top: root.scrollHeight, behavior});
}

function follow(wants) {
  isFollowing = wants;
  jump.hidden = wants;
}

addEventListener('scroll', () => {
  const y = root.scrollTop;
  // A page that got shorter moves up by itself, and is at its end.
  if (left() <= NEAR_PIXELS) follow(true);
  else if (y < lastY) follow(false);
  lastY = y;
}, {passive: true});
addEventListener('resize', () => isFollowing && toEnd(false));
jump.addEventListener('click', () => {
  follow(true);
  toEnd(true);
});

// --- Drawing ---------------------------------------------------------------------------------------

let isDrawing = false;
// Events that came since the page was drawn, as what takes them and what they hold.
let news = [];

function draw() {
  // Unseen pages are not drawn; what comes must not pile up, nor be late when they are looked at.
  if (document.hidden) return drawNow();
  if (!isDrawing) requestAnimationFrame(drawNow);
  isDrawing = true;
}

function drawNow() {
  isDrawing = false;
  removePartial();
  for (const [take, data] of news.splice(0)) take(data);
  showPartial();
  trim();
  const isOver = status.state === 'ended' || status.state === 'failed';
  empty.hidden = isOver || entries.length > 0 || partial !== null;
  $('end').hidden = status.state !== 'ended';
  if (isFollowing) toEnd(true);
}

function showStatus() {
  const isOver = status.state === 'ended' || status.state === 'failed';
  let [state, text] = ['connecting', entries.length ? 'Reconnecting' : 'Connecting'];
  if (isOver || isConnected) {
    state = status.state;
    text = {starting: 'Starting', live: 'Live', ended: 'Ended', failed: 'Failed'}[state];
  }
  const node = $('status');
  if (node.dataset.state !== state) node.dataset.state = state;
  if ($('status-text').textContent !== text) $('status-text').textContent = text;
  const why = status.state === 'failed' ? `The stream has failed: ${status.why}` : '';
  if (banner.textContent !== why) banner.replaceChildren(...(why ? [make('p', '', why)] : []));
}

// --- Connection ------------------------------------------------------------------------------------

let [run, source, lastId, lastHeard] = ['', null, '', 0];

const told = {
  hello(hello) {
    if (!hello.resumed || hello.run !== run) quietly(clear);
    run = hello.run;
    [isConnected, hasCaughtUp] = [true, false];
    announce();
    status = hello.status;
    $('title').textContent = hello.title;
    document.title = hello.title;
    showStatus();
  },
  cut({missed}) {
    if (entries.length === 0) $('cut').hidden = false;
    else addMark('gap', missed === 1 ? 'A line is missing here.' : `${missed} lines are missing here.`);
  },
  line(line) {
    partial = null;
    addLine(line);
  },
  partial(line) {
    partial = line;
  },
  relabel,
  notice({text}) {
    addMark('notice', text);
  },
  status(now) {
    status = now;
    showStatus();
  },
  ready() {
    hasCaughtUp = true;
    setTimeout(announce, 100);
  },
  beat() {},
};

function connect() {
  source?.close();
  lastHeard = Date.now();
  source = new EventSource(lastId ? `events?after=${encodeURIComponent(lastId)}` : 'events');
  for (const [kind, take] of Object.entries(told)) {
    source.addEventListener(kind, event => {
      lastHeard = Date.now();
      lastId = event.lastEventId || lastId;
      news.push([take, JSON.parse(event.data)]);
      // What is left of a guess comes right behind the line that it became, and is drawn with it: else it would be gone
      // for a moment.
      if (kind === 'line' && partial) setTimeout(draw, LEFT_MS);
      else draw();
    });
  }
  source.addEventListener('error', () => {
    isConnected = false;
    showStatus();
    // The browser itself comes back from a lost connection, but not from an answer that it does not like.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, AGAIN_MS);
  });
}

function lookAfter() {
  if (Date.now() - lastHeard <= SILENCE_MS) return;
  isConnected = false;
  showStatus();
  connect();
}

setInterval(lookAfter, 5_000);
// A phone that was asleep does not wait for the next look.
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) lookAfter();
});
connect();

})();
