"""ganfast bench sample."""

from ganfast.commands.parsing import DEVICE, parser_for
from ganfast.errors import InputError


def sample(args: list[str]) -> None:
    parser = parser_for(
        "ganfast bench sample",
        "Latencies of a bundle on every back end that runs here, in turns. They are stored beside "
        "the bundle, with those measured before: `load_sampler` then takes the fastest on this "
        "machine.",
    )
    parser.add_argument("bundle")
    parser.flag("--backend", "", "tensorrt,rtx,onnxruntime,torch; default all")
    parser.flag("--device", "auto", DEVICE)
    parser.flag("--threads", 0, "of the CPU; 0 = all")
    parser.flag("--seconds", 1.0, "for each back end, batch and concurrency (default 1)")
    parser.flag("--concurrency", "1,4", "requests at once (default 1,4)")
    parser.flag("--batches", "", "pictures a request; default the bundle's buckets")
    parser.flag("--keep", False, "leave what is stored beside the bundle as it is")
    arguments = parser.parse_args(args)
    concurrency, batches = (_numbers(arguments, name) for name in ("concurrency", "batches"))
    from ganfast.export.bundle.bundle import open_bundle
    from ganfast.export.drawing.bench_sample import measure
    from ganfast.export.drawing.latency import store

    bundle = open_bundle(arguments.bundle)
    names = [word.strip() for word in arguments.backend.split(",") if word.strip()]
    table, refused = measure(
        bundle, names, arguments.device, arguments.threads, arguments.seconds, concurrency, batches
    )
    print(f"{table['machine']}, {table['threads']} threads; milliseconds")
    columns = ("p50", "p90", "p99", "p99.9", "enqueue", "compute", "copy")
    titles = "".join(f"{name:>9}" for name in columns)
    print(f"{'back end':18}{'batch':>6}{'at once':>8}{titles}{'images/s':>10}")
    for row in table["rows"]:
        times = "".join(
            f"{row[name] * 1e3:9.3f}" if name in row else f"{'-':>9}" for name in columns
        )
        conditions = f"{row['back_end']:18}{row['batch']:6}{row['concurrency']:8}"
        print(f"{conditions}{times}{row['images_per_second']:10.0f}")
    for reason in refused:
        print(f"not measured: {reason}")
    if not arguments.keep:
        store(bundle, table)


def _numbers(arguments: object, name: str) -> list[int]:
    text = getattr(arguments, name)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"{name} is {text!r}; expected whole numbers such as 1,8")
    return [int(word) for word in words]
