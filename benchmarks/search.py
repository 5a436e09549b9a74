"""SGHC against an exact flat search of as many codes, and that against faiss and others.

python benchmarks/search.py  (faiss-cpu and vector-quantize-pytorch take part where installed)
"""

from __future__ import annotations

import argparse
import importlib.util
import weakref
from collections.abc import Callable
from typing import Any

import torch
from protocol import bar, product, protocol, race, show
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from semhitok.model.search import nearest, nearest_in_parent


class Allocated(TorchDispatchMode):
    """Bytes of all tensors alive at once at the worst, without those that were there before.

    Counts storages, not the process's pages: what a routine allocates inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)):
            self._known.add(tensor.untyped_storage())
        out = func(*args, **kwargs)
        for tensor in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


def peak_bytes(work: Callable[[], object]) -> int:
    with Allocated() as allocated:
        work()
    return allocated.peak


def plain_flat(x: Tensor, codes: Tensor) -> Tensor:
    """The textbook's search: the whole matrix of distances."""
    return torch.cdist(x, codes).argmin(dim=1)


def plain_sghc(x: Tensor, semantic: Tensor, y: Tensor, table: Tensor) -> Tensor:
    parents = plain_flat(x, semantic)
    return torch.cdist(y[:, None], table[parents])[:, 0].argmin(dim=1)


def others(x: Tensor, codes: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Other libraries' flat searches, those that are installed."""
    found: dict[str, Callable[[], Tensor]] = {}
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatL2(codes.shape[1])
        index.add(codes.numpy())
        found["faiss IndexFlatL2"] = lambda: torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])
    else:
        print("faiss is not installed (pip install faiss-cpu): left out")
    if importlib.util.find_spec("vector_quantize_pytorch"):
        from vector_quantize_pytorch import VectorQuantize

        quantizer = VectorQuantize(dim=codes.shape[1], codebook_size=len(codes)).eval()
        quantizer.codebook = codes
        found["vector-quantize-pytorch"] = torch.inference_mode(lambda: quantizer(x[None])[1][0])
    else:
        print("vector_quantize_pytorch is not installed (pip install vector-quantize-pytorch)")
    return found


def disagreement(found: Tensor, exact: Tensor, x: Tensor, codes: Tensor) -> str:
    """How many indices differ from the exact ones, and how much farther their codes are."""
    wrong = (found != exact).nonzero()[:, 0]
    if not len(wrong):
        return "same"
    far, near = ((x[wrong] - codes[i[wrong]]).double().norm(dim=1) for i in (found, exact))
    return f"{len(wrong)} differ, {float((far / near - 1).max()):.0e} farther"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=2048)
    parser.add_argument("--semantic", type=int, default=16384, help="K")
    parser.add_argument("--pixel", type=int, default=12, help="m")
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    o = parser.parse_args()
    if o.quick:
        o.patches, o.semantic, o.repeats = 64, 256, 1
    n, k, m, d = o.patches, o.semantic, o.pixel, o.dim
    sizes = f"{n:,} patches, d = {d}, K = {k:,}, m = {m}, flat {k * m:,}; normal, fp32"
    print(protocol(o.repeats, sizes))

    torch.manual_seed(0)
    x, y, semantic, codes = (torch.randn(rows, d) for rows in (n, n, k, k * m))
    table = codes.view(k, m, d)
    exact = nearest(x, codes)

    def sghc() -> Tensor:
        return nearest_in_parent(y, nearest(x, semantic), table)

    def flat() -> Tensor:
        return nearest(x, codes)

    rivals = others(x, codes)
    side = 256 if o.quick else 2048
    seconds = race({"peak": product(side=side), "SGHC": sghc, "flat": flat, **rivals}, o.repeats)
    peak = 2 * side**3 / seconds.pop("peak") / 1e9
    print(f"matrix product of {side}: {peak:.0f} GFLOP/s\n")

    work = {name: 2 * n * k * m * d for name in seconds} | {"SGHC": 2 * n * (k + m) * d}
    answers = {name: disagreement(f(), exact, x, codes) for name, f in rivals.items()}
    rows = []
    for name, took in seconds.items():
        rate = work[name] / took / 1e9
        share, against = f"{rate / peak:.0%}", f"{took / seconds['flat']:.2f}"
        told = answers.get(name, "exact")
        rows.append([name, f"{took * 1e3:.1f}", against, f"{rate:.0f}", share, told])
    show(["search", "ms", "of flat", "GFLOP/s", "of peak", "indices"], rows)

    plain = {
        "SGHC": lambda: plain_sghc(x, semantic, y, table),
        "flat": lambda: plain_flat(x, codes),
    }
    ours = {"SGHC": sghc, "flat": flat}
    print("\nworking memory beside codes and patches: tensors alive at once, MB")
    memory = {
        how: {name: peak_bytes(f) / 1e6 for name, f in both.items()}
        for how, both in (("in tiles (ours)", ours), ("whole matrix", plain))
    }
    tiled, whole = memory.values()
    show(
        ["search", *memory],
        [[name, f"{tiled[name]:.1f}", f"{whole[name]:.1f}"] for name in ours],
    )

    print()
    print(bar("SGHC faster than flat", seconds["flat"] / seconds["SGHC"], 10))
    for how, both in memory.items():
        share = both["SGHC"] / both["flat"]
        print(bar(f"SGHC's memory of flat's, {how}", share, 0.1, at_most=True))
    for (name, took), limit in zip(
        ((name, seconds[name]) for name in rivals),
        (4 if "faiss" in name else 20 for name in rivals),
        strict=True,
    ):
        most = took * peak * 1e9 / work["flat"]
        line = bar(f"flat faster than {name}", took / seconds["flat"], limit)
        print(f"{line}; at the matrix peak it would be {most:.1f}x")


if __name__ == "__main__":
    main()
