# The BONBID-HIE challenge's container, and hie-bundle for anybody: docs/segment.md.
#
#   docker build -t hie-bundle .                          # PyTorch for CPUs
#   docker build -t hie-bundle --build-arg TORCH=cu130 .  # for GPUs: a CUDA version that this PyTorch is built for
FROM python:3.11-slim

ARG TORCH=cpu
COPY . /opt/hie_bundle
# uv knows where PyTorch keeps its builds; the package stays where it was copied, configs and weights with it
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend "$TORCH" -c /opt/hie_bundle/constraints.txt \
       --editable '/opt/hie_bundle[dicom]' \
    && useradd --create-home user
USER user

ENTRYPOINT ["hie-bundle"]
CMD ["challenge"]
