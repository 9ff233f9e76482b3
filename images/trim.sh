#!/bin/sh
# Removes what no step needs; warm.py, which runs next, shows that all imports still work.
set -eu
# kfp's client and what only that needs: a step runs kfp's executor, which imports none of it.
uv pip uninstall --quiet kfp-server-api kubernetes oauthlib requests-oauthlib requests-toolbelt \
  tabulate websocket-client
cd /opt/kubestill/lib/python3*/site-packages
# No step runs pip; images that are made from this one do, once.
find pip -type d -name __pycache__ -prune -exec rm -rf {} +
# Headers, build parts, test libraries, and readers of stores that we read ourselves. Kept, because
# plain imports load them: torch/testing/_internal and libarrow_substrait.
rm -rf torch/include torch/share torch/test pyarrow/include pyarrow/libarrow_flight* \
  pyarrow/_flight* pyarrow/libarrow_s3* pyarrow/_s3fs* matplotlib/mpl-data/sample_data \
  matplotlib/mpl-data/fonts/afm matplotlib/mpl-data/fonts/pdfcorefonts
# botocore describes each of Amazon's services; S3 is ours, the others give out credentials.
find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts ! -name sso \
  ! -name sso-oidc ! -name signin -exec rm -rf {} +
# A wheel holds no links, so this library is there three times.
(
  cd pyarrow
  real=$(ls libarrow_python.so.*.*.*)
  ln -sf "$real" libarrow_python.so
  ln -sf "$real" "${real%.*.*}"
)
rm -f torch/lib/*test*.so torch/lib/libbackend_with_compiler.so torch/lib/libaoti_custom_ops.so
find torch/bin -type f ! -name torch_shm_manager -delete
find . -type d -name tests -prune -exec rm -rf {} +
find . -type f \( -name '*.a' -o -name '*.h' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' \
  -o -name '*.c' -o -name '*.cpp' \) -delete
# Not in *.libs: what auditwheel has patched, strip would break.
find . -name '*.libs' -prune -o -type f -name '*.so*' -exec strip --strip-unneeded {} +
