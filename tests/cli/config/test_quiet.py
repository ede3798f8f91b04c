"""What the command does not show: checked messages of others, for as long as it runs."""

import logging

from lightning_peft.cli.config.quiet import quiet


def test_a_kernel_for_four_bits_is_not_asked_for_where_peft_is_imported(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with quiet():
        logger.warning("Failed to load CPU gemm_4bit_forward")
        logger.error("an error")
    assert [record.message for record in caplog.records] == ["an error"]
    logger.warning("as before")
    assert caplog.records[-1].message == "as before"
