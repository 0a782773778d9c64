// Numbers for people, as `relayd status` writes them.

const number = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

function count(value) {
  return value == null ? "-" : number.format(value);
}

/** [figure, unit] of `value` in steps of `base`. */
function scaled(value, base, units) {
  let step = 0;
  while (step < units.length - 1 && value >= base) {
    value /= base;
    step += 1;
  }
  const digits = step === 0 || value >= 100 ? 0 : 1;
  return [value.toFixed(digits), units[step]];
}

const bytesParts = (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const bitsParts = (bytesPerS) => scaled(bytesPerS * 8, 1000, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]);
const bytes = (value) => (value == null ? "-" : bytesParts(value).join(" "));
const bits = (value) => (value == null ? "-" : bitsParts(value).join(" "));

function perSecond(value) {
  if (value == null) return "0/s";
  return `${value > 0 && value < 10 ? value.toFixed(1) : count(value)}/s`;
}

/** Two units at most: 42 s, 5 min 3 s, 2 h 5 min, 3 d 4 h. */
function duration(seconds) {
  if (seconds == null) return "-";
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  for (const [big, bigName, small, smallName] of [
    [86400, "d", 3600, "h"],
    [3600, "h", 60, "min"],
    [60, "min", 1, "s"],
  ]) {
    if (whole >= big) {
      const rest = Math.floor((whole % big) / small);
      return `${Math.floor(whole / big)} ${bigName}${rest ? ` ${rest} ${smallName}` : ""}`;
    }
  }
  return "-";
}

const milliseconds = (value) => (value == null ? "-" : `${value < 10 ? value.toFixed(1) : count(value)} ms`);
const plural = (value, one, many) => `${count(value)} ${value === 1 ? one : many}`;
const total = (mapping) => Object.values(mapping || {}).reduce((sum, value) => sum + value, 0);

/** The key's first characters: enough to tell peers apart, as in logs. */
const short = (key) => String(key).slice(0, 8);
