"""ganfast bench sample."""

from ganfast.commands.parsing import parser_for
from ganfast.errors import InputError


def sample(args: list[str]) -> None:
    parser = parser_for(
        "ganfast bench sample",
        "Latencies of a bundle on every back end that runs here, in turns. They are stored beside "
        "the bundle, with those measured before: `load_sampler` plans its batches by them.",
    )
    parser.add_argument("bundle")
    parser.add_argument("--backend", default="", help="tensorrt,rtx,onnxruntime,torch; default all")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 = all")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="for each back end, batch and concurrency (default 1)",
    )
    parser.add_argument("--concurrency", default="1,4", help="requests at once (default 1,4)")
    parser.add_argument(
        "--batches", default="", help="pictures a request; default the bundle's buckets"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave what is stored beside the bundle as it is"
    )
    given = parser.parse_args(args)
    concurrency, batches = (_numbers(given, name) for name in ("concurrency", "batches"))
    from ganfast.export.bundle.bundle import open_bundle
    from ganfast.export.drawing.bench_sample import measure
    from ganfast.export.drawing.latency import store

    bundle = open_bundle(given.bundle)
    names = [word.strip() for word in given.backend.split(",") if word.strip()]
    table, refused = measure(
        bundle, names, given.device, given.threads, given.seconds, concurrency, batches
    )
    print(f"{table['machine']}, {table['threads']} threads; milliseconds")
    columns = ("p50", "p90", "p99", "p99.9", "enqueue", "compute", "copy")
    print(
        f"{'back end':18}{'batch':>6}{'at once':>8}"
        + "".join(f"{name:>9}" for name in columns)
        + f"{'images/s':>10}"
    )
    for row in table["rows"]:
        times = "".join(
            f"{row[name] * 1e3:9.3f}" if name in row else f"{'-':>9}" for name in columns
        )
        print(
            f"{row['back_end']:18}{row['batch']:6}{row['concurrency']:8}{times}{row['images_per_second']:10.0f}"
        )
    for reason in refused:
        print(f"not measured: {reason}")
    if not given.keep:
        store(bundle, table)


def _numbers(given: object, name: str) -> list[int]:
    text = getattr(given, name)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"{name} is {text!r}; expected whole numbers such as 1,8")
    return [int(word) for word in words]
