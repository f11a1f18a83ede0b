"""Run the demo with its output on S3, and read the result from there.

Everything about access comes from the environment:

    export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... AWS_REGION=us-east-1
    export AWS_ENDPOINT_URL=http://127.0.0.1:9000    # for servers other than Amazon's
    export S3_BUCKET=datasets
    python examples/run_on_s3.py

The rights that a run needs are in docs/operations.md. If the run is interrupted, start it again: it
does only what is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys

from rudalle_lib import read_images

output = f"s3://{os.environ['S3_BUCKET']}/demo"
command = [sys.executable, "-m", "flows.cli"]

# Arguments are passed on, for example `--set prompts.limit=8`.
subprocess.run([*command, "run", "demo", "--output", output, *sys.argv[1:]], check=True)
subprocess.run([*command, "status", output], check=True)

images = read_images(output)
print(f"{len(images)} images in {output}, mean score {images['score'].mean():.3f}")
