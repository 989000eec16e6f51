/*
 * The ways to and from a card: PCIe and NVLink.
 */
#include "state.h"

NUMBER_CALL(nvmlDeviceGetCurrPcieLinkGeneration, pcie_gen)
NUMBER_CALL(nvmlDeviceGetCurrPcieLinkWidth, pcie_width)
NUMBER_CALL(nvmlDeviceGetMaxPcieLinkGeneration, pcie_gen_max)
NUMBER_CALL(nvmlDeviceGetGpuMaxPcieLinkGeneration, pcie_gen_max)
NUMBER_CALL(nvmlDeviceGetMaxPcieLinkWidth, pcie_width_max)
NUMBER_CALL(nvmlDeviceGetPcieReplayCounter, pcie_replays)

answer nvmlDeviceGetPcieThroughput(device device, unsigned int counter, unsigned int *out) {
    VISIT_GPU(device);
    if (counter > 1) return INVALID_ARGUMENT;
    return give_narrow(visit.thing, counter ? NUMBER_pcie_rx_kbps : NUMBER_pcie_tx_kbps, out);
}

/* === NVLink === */

static answer find_link(const struct visit *visit, unsigned int link, const struct thing **out) {
    if (link >= LINKS_MAX) return INVALID_ARGUMENT;
    *out = thing_of(visit->state, KIND_link, visit->gpu, link);
    return *out ? OK : NOT_SUPPORTED;
}

#define VISIT_LINK(device, link)  \
    const struct thing *found;    \
    VISIT_GPU(device);            \
    TRY(find_link(&visit, link, &found))

answer nvmlDeviceGetNvLinkState(device device, unsigned int link, unsigned int *out) {
    VISIT_LINK(device, link);
    *out = !found->has[NUMBER_active] || found->number[NUMBER_active];
    return OK;
}

answer nvmlDeviceGetNvLinkVersion(device device, unsigned int link, unsigned int *out) {
    VISIT_LINK(device, link);
    return give_narrow(found, NUMBER_version, out);
}

answer nvmlDeviceGetNvLinkRemotePciInfo_v2(device device, unsigned int link, struct pci_info *out) {
    VISIT_LINK(device, link);
    return give_pci(found->text[TEXT_remote], NULL, out);
}

answer nvmlDeviceGetNvLinkRemoteDeviceType(device device, unsigned int link, unsigned int *out) {
    VISIT_LINK(device, link);
    /* A link to a card of this node ends at a GPU, any other at a switch. */
    struct bus remote, here;
    const struct things *cards = &visit.state->things[KIND_gpu];
    if (!read_bus(found->text[TEXT_remote], &remote)) return NOT_SUPPORTED;
    *out = 2;
    for (int i = 0; i < cards->count; i++)
        if (read_bus(cards->items[i].text[TEXT_pci], &here) && memcmp(&here, &remote, sizeof here) == 0) *out = 0;
    return OK;
}

answer nvmlDeviceGetNvLinkCapability(device device, unsigned int link, unsigned int capability,
                                     unsigned int *out) {
    VISIT_LINK(device, link);
    if (capability >= 6) return INVALID_ARGUMENT;
    /* Between GPUs, with atomics, and valid; not to the host's memory, no bridge. */
    *out = capability == 0 || capability == 2 || capability == 5;
    return OK;
}

static answer link_errors(const struct thing *link, unsigned int counter, wide *out) {
    static const enum number numbers[] = {NUMBER_replay_errors, NUMBER_recovery_errors, NUMBER_crc_errors,
                                          NUMBER_crc_errors, NUMBER_ecc_errors};
    return counter < 5 ? give_wide(link, numbers[counter], out) : INVALID_ARGUMENT;
}

answer nvmlDeviceGetNvLinkErrorCounter(device device, unsigned int link, unsigned int counter, wide *out) {
    VISIT_LINK(device, link);
    return link_errors(found, counter, out);
}
