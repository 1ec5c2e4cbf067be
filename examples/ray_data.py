"""Caption a webdataset with Ray Data, as a part of a pipeline of your own.

python examples/ray_data.py s3://bucket/shards/ s3://bucket/captions/ 11b
"""

import sys

import ray

from mllama_cli.ray import Captioner


def main(shards: str, captions: str, model: str) -> None:
    ray.init()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    (
        ray.data.read_webdataset(shards, decoder=None)
        .map_batches(
            Captioner,
            fn_constructor_kwargs={"model": model, "prompt": "Describe this image. Its alt text is: {txt}"},
            batch_size=32,
            num_gpus=1 if gpus else 0,
            # Two blocks at a time in each actor: the end of one drains nothing.
            compute=ray.data.ActorPoolStrategy(size=max(1, gpus), max_concurrent_calls_per_actor=2),
        )
        .write_parquet(captions)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
