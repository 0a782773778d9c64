// What happened between two answers of the process, by the process's own clock.

class Rates {
  constructor(before, now) {
    const seconds = before ? now.uptime_s - before.uptime_s : 0;
    // A restart in between: nothing to compare.
    this.seconds = seconds > 0 ? seconds : null;
    this.before = before;
    this.now = now;
  }

  /** Per second; null when there is nothing to compare with. `read` takes a status to a number. */
  of(read) {
    if (this.seconds === null) return null;
    return Math.max(0, ((read(this.now) ?? 0) - (read(this.before) ?? 0)) / this.seconds);
  }

  /** The waiting time in ms that `share` of the frames didn't exceed that waited meanwhile; null: none waited. */
  delay(share) {
    if (this.seconds === null || !this.before.queue_delay) return null;
    const frames = this.now.queue_delay.frames.map((value, index) => value - this.before.queue_delay.frames[index]);
    const all = frames.reduce((sum, value) => sum + value, 0);
    if (all <= 0) return null;
    let seen = 0;
    const bounds = this.now.queue_delay.bounds_ms;
    for (let index = 0; index < frames.length; index += 1) {
      seen += frames[index];
      if (seen >= share * all) return bounds[Math.min(index, bounds.length - 1)];
    }
    return null;
  }

  /** [name, total, rate] of a mapping of counters, the largest first. */
  entries(name) {
    const totals = this.now[name] || {};
    return Object.entries(totals)
      .map(([reason, value]) => [reason, value, this.of((status) => (status[name] || {})[reason])])
      .sort((one, other) => other[1] - one[1]);
  }
}
