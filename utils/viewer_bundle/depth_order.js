// Far-to-near order of splats, in a worker so that the page stays responsive. The order is exact: a radix sort of float bits.

/** Source of the worker; self-contained, as it is run from a blob. */
export function sorter() {
  let means = null, hidden = null;

  /** Indices of the splats in front of `near`, farthest first; plane is the third row of world-to-camera. */
  function order(plane, near) {
    const count = means.length / 3, depth = new Float32Array(count), bits = new Uint32Array(depth.buffer);
    let first = new Uint32Array(count), shown = 0;
    const [a, b, c, d] = plane;
    const low = new Uint32Array(65537), high = new Uint32Array(65537);
    for (let i = 0; i < count; i++) {
      const z = a * means[3 * i] + b * means[3 * i + 1] + c * means[3 * i + 2] + d;
      if (!(z > near) || (hidden && hidden[i])) continue;
      depth[i] = z;
      first[shown++] = i;
      low[(~bits[i] & 0xffff) + 1]++;
      high[(~bits[i] >>> 16) + 1]++;
    }
    for (let i = 1; i <= 65536; i++) {
      low[i] += low[i - 1];
      high[i] += high[i - 1];
    }
    const second = new Uint32Array(shown);
    for (let k = 0; k < shown; k++) second[low[~bits[first[k]] & 0xffff]++] = first[k];
    first = new Uint32Array(shown);
    for (let k = 0; k < shown; k++) first[high[~bits[second[k]] >>> 16]++] = second[k];
    return first;
  }

  return {
    setMeans: (values) => { means = values; hidden = null; },
    setHidden: (mask) => { hidden = mask; },
    order,
  };
}

/** Orders splats in a worker, or in the page where workers are not allowed. */
export class DepthOrder {
  constructor(onOrder) {
    this._onOrder = onOrder;
    this._here = sorter();
    this._worker = startWorker();
    this._busy = false;
    this._next = null;
    if (this._worker) {
      this._worker.onmessage = ({ data }) => {
        this._busy = false;
        if (data.generation === this._generation) this._onOrder(data.order);
        if (this._next) this.request(...this._next);
      };
    }
    this._generation = 0;
  }

  setMeans(means) {
    this._generation++;
    this._here.setMeans(means);
    this._worker?.postMessage({ means });
  }

  /** Hides the splats with a non-zero byte in `mask`; null shows all. */
  setHidden(mask) {
    this._generation++;
    this._here.setHidden(mask);
    this._worker?.postMessage({ hidden: mask });
  }

  /** The order for a view, at once. */
  now(plane, near) {
    return this._here.order(plane, near);
  }

  /** Asks for the order of a view; `onOrder` is called with the newest one asked for. */
  request(plane, near) {
    if (!this._worker) {
      this._onOrder(this.now(plane, near));
      return;
    }
    this._next = this._busy ? [plane, near] : null;
    if (this._busy) return;
    this._busy = true;
    this._worker.postMessage({ plane, near, generation: this._generation });
  }

  get idle() {
    return !this._busy;
  }

  dispose() {
    this._worker?.terminate();
  }
}

function startWorker() {
  const source = `const s = (${sorter})();
    onmessage = ({data}) => {
      if (data.means) s.setMeans(data.means);
      else if ("hidden" in data) s.setHidden(data.hidden);
      else { const order = s.order(data.plane, data.near); postMessage({order, generation: data.generation}, [order.buffer]); }
    };`;
  try {
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    const worker = new Worker(url);
    URL.revokeObjectURL(url);
    return worker;
  } catch {
    return null;
  }
}
