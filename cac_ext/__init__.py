from cac_ext.reference import (  # noqa: F401
    directional_contrastive_loss,
    masked_contrastive_loss,
    masked_logsumexp,
)
