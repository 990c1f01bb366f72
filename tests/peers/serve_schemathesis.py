"""schemathesis over the OpenAPI document of `zamba serve`: no answer is an error of the server's, none has a status, a type
or a shape that the document does not know, and what the document forbids is refused.

    serve_schemathesis.py --zamba PATH/zamba [--seconds 90]
"""

import argparse
import os
import subprocess
import sys
import tempfile

import serving

CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance", "negative_data_rejection", "unsupported_method"]


def main():
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--zamba", required=True)
    parser.add_argument("--seconds", type=int, default=90)
    parser.add_argument("--examples", type=int, default=60, help="for each operation, in each phase")
    args = parser.parse_args()
    program = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    with tempfile.TemporaryDirectory(prefix="zamba-schemathesis-") as scratch:
        folder = serving.model(args.zamba, scratch)
        # Short sequences: a request may ask for as many tokens as it likes, and most do.
        with serving.Server(args.zamba, folder, "--ctx", "96") as server:
            command = [program, "run", f"{server.url}/openapi.json", "--phases", "examples,coverage,fuzzing", "--no-color",
                       "--max-examples", str(args.examples), "--max-time", str(args.seconds), "--seed", "1",
                       "--generation-database", "none", "--continue-on-failure", "--checks", ",".join(CHECKS), "--request-timeout", "60",
                       "--warnings", "off"]
            done = subprocess.run(command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  timeout=args.seconds + 300)
            print("\n".join("    " + line for line in done.stdout.strip().splitlines()[-400:]))
            print(done.stderr.strip()[-2000:])
            if done.returncode != 0:
                raise SystemExit(f"serve_schemathesis: schemathesis ends with {done.returncode}")
            status, _ = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
            if status != 200:
                raise SystemExit(f"serve_schemathesis: afterwards the server answers {status}")


if __name__ == "__main__":
    main()
