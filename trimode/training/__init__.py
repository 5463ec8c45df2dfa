"""The training that makes an AR checkpoint tri-modal: noise, masks, objective."""
