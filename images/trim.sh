#!/bin/sh
# Remove what no step needs; warm.py, which runs next, shows that all imports still work.
set -eu
# kfp's client and its dependencies: a step runs kfp's executor, which imports none of them.
uv pip uninstall --quiet kfp-server-api kubernetes oauthlib requests-oauthlib requests-toolbelt \
  tabulate websocket-client
cd /opt/kubestill/lib/python3*/site-packages
# No step runs pip; images built on this one run it, once.
find pip -type d -name __pycache__ -prune -exec rm -rf {} +
# Headers, build parts, test libraries, and readers of stores that we read ourselves. Plain imports
# load torch/testing/_internal and libarrow_substrait, so those stay.
rm -rf torch/include torch/share torch/test pyarrow/include pyarrow/libarrow_flight* \
  pyarrow/_flight* pyarrow/libarrow_s3* pyarrow/_s3fs* matplotlib/mpl-data/sample_data \
  matplotlib/mpl-data/fonts/afm matplotlib/mpl-data/fonts/pdfcorefonts
# botocore describes all of Amazon's services; we need S3, and the others to get credentials.
find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts ! -name sso \
  ! -name sso-oidc ! -name signin -exec rm -rf {} +
# A wheel contains no links, so this library is in it three times.
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
# Not in *.libs: strip would break what auditwheel has patched.
find . -name '*.libs' -prune -o -type f -name '*.so*' -exec strip --strip-unneeded {} +
