//! Each deliberate fault: its name and what it takes out.

faults! {
    // Bring-up of a unit.
    /// The last device scope of each unit is dropped when firmware tables are read.
    DropLastScope = "drop_last_scope",
    /// Bus mastering of the last function stays on during bring-up.
    KeepBusMastering = "keep_bus_mastering",
    /// A command is written without the levels that are on already.
    DropCommandLevels = "drop_command_levels",
    /// Nobody waits until the unit reports a command as done.
    CommandNotAwaited = "command_not_awaited",
    /// The write buffer is not flushed before the unit takes its root table.
    SkipWriteBufferFlush = "skip_write_buffer_flush",
    /// What a unit cached before it took its root table is not invalidated.
    SkipFirstFlush = "skip_first_flush",
    /// Bring-up ends without turning translation on.
    LeaveTranslationOff = "leave_translation_off",
    /// Nobody waits until protected memory is off.
    ProtectionNotAwaited = "protection_not_awaited",
    /// A command is given while one that timed out is not done.
    OverlapCommands = "overlap_commands",
    /// A reset does not clear the error for which the queue stopped.
    LeaveQueueErrors = "leave_queue_errors",
    /// The window of interrupt messages is mapped like other addresses.
    WindowNotReserved = "window_not_reserved",
    /// Devices are believed to send wider addresses than the unit takes.
    IgnoreGuestWidth = "ignore_guest_width",
    /// Write-only mappings are made also where zero-length reads of them fault.
    IgnoreZeroLengthReads = "ignore_zero_length_reads",
    /// Protected memory stays on after translation is.
    KeepProtectedMemory = "keep_protected_memory",

    // Entries that bind devices.
    /// The word that makes an entry live is written before the other word.
    ContextLowFirst = "context_low_first",
    /// The other word of an entry is cleared while the entry is live.
    ContextHighWhilePresent = "context_high_while_present",
    /// An entry lets its device through untranslated, where the unit can.
    BindPassThrough = "bind_pass_through",
    /// An entry goes live without its other word.
    HalfEntry = "half_entry",
    /// An entry tells another depth than that of its tables.
    RootLevelApart = "root_level_apart",
    /// Entries that bind, and the tables that they are in, are not written back; the fence stays.
    SkipContextWriteBack = "skip_context_write_back",
    /// A new binding is not flushed where the unit may have cached that there was none.
    SkipBindFlush = "skip_bind_flush",
    /// That a device was not bound is invalidated under the new domain's id, not under id 0.
    BindFlushNewId = "bind_flush_new_id",
    /// The entry that binds a device to its domain is not invalidated at detach.
    SkipContextFlush = "skip_context_flush",
    /// The entry is invalidated at detach under id 0.
    UnbindContextOtherId = "unbind_context_other_id",
    /// Translations are invalidated at detach under id 0.
    UnbindIotlbOtherId = "unbind_iotlb_other_id",
    /// Detaching a group takes down the entry of its first requester only.
    UnbindSkipsAlias = "unbind_skips_alias",
    /// Groups do not know the phantom functions of their members.
    ForgetPhantoms = "forget_phantoms",
    /// A detached group keeps bus mastering.
    ClaimKeepsBusMastering = "claim_keeps_bus_mastering",

    // Groups, and who has them.
    /// Who claimed a group is noted after the lock of the table of groups was let go of.
    HolderNotedLate = "holder_noted_late",
    /// A group is out of the register of bound devices before its unit forgot its entries.
    UnregisterEarly = "unregister_early",

    // What firmware reserves.
    /// A region that firmware goes on using is reserved in its group's domain, and not mapped.
    RegionNotMapped = "region_not_mapped",
    /// A group with a region of firmware is taken by domains that do not map it.
    RegionNotAsked = "region_not_asked",
    /// What firmware wants mapped is not compared with the memory map.
    RegionNotCompared = "region_not_compared",
    /// A device that firmware goes on using is bound after translation went on.
    KeptBoundLate = "kept_bound_late",
    /// The gate of an SMMU that let firmware's devices pass until it translates stays open then.
    KeptGateStaysOpen = "kept_gate_stays_open",
    /// The gate of an SMMU that firmware left translating is open while its stream table is changed.
    KeptGapIsOpen = "kept_gap_is_open",
    /// Gates stay open also on SMMUs that no device is behind which is kept running.
    KeepsEveryGate = "keeps_every_gate",
    /// A doorbell leads to the page behind the one that takes messages.
    DoorbellOnePageOff = "doorbell_one_page_off",
    /// A doorbell is mapped as memory.
    DoorbellIsMemory = "doorbell_is_memory",
    /// The doorbell is where interrupt services have their control registers.
    DoorbellOfControl = "doorbell_of_control",
    /// Interrupts count as isolated also where another group's device is the same writer of messages.
    SharedWriterIsolated = "shared_writer_isolated",
    /// Who writes messages is told by requester ids, whatever firmware makes of them.
    WriterByRequester = "writer_by_requester",
    /// A function that joins a group which somebody holds is taken in.
    HeldGroupChanges = "held_group_changes",
    /// The unit of a virtual function is looked up by its own id.
    UnitByOwnId = "unit_by_own_id",
    /// Registers of functions that are gone are written.
    GoneIsWritten = "gone_is_written",
    /// A group is parked with the entries of its PASIDs in place.
    ParkLeavesPasids = "park_leaves_pasids",
    /// Functions go on sending with PASIDs when their group's are closed.
    PasidsStayOn = "pasids_stay_on",
    /// Nobody looks after a reset whether a group is still kept apart.
    IsolationNotReread = "isolation_not_reread",
    /// The memory of a region comes out of the end of its domain as frames.
    RegionHandedOut = "region_handed_out",

    // Domain ids.
    /// Id 0 is given to a domain, and the unit accepts it.
    DomainIdZero = "domain_id_zero",
    /// A domain's id is free again as soon as the domain has it.
    FreeIdEarly = "free_id_early",

    // Second-stage tables.
    /// Pairs of 4 KiB pages of a mapping get each other's address.
    SwapNeighbours = "swap_neighbours",
    /// Every mapping gets read and write permission.
    IgnorePermissions = "ignore_permissions",
    /// A table is linked by a plain store where a compare-and-swap belongs.
    InstallByStore = "install_by_store",
    /// A new table is not written back.
    SkipTableWriteBack = "skip_table_write_back",
    /// No fence orders a new table's write-back before the link to it.
    SkipPublishFence = "skip_publish_fence",
    /// A link to a table is not written back.
    SkipLinkWriteBack = "skip_link_write_back",
    /// The leaves of a mapping are not written back.
    SkipLeafWriteBack = "skip_leaf_write_back",
    /// No fence follows the last leaf of a mapping.
    SkipMapFence = "skip_map_fence",
    /// Unmapped leaves are not written back.
    SkipUnmapWriteBack = "skip_unmap_write_back",
    /// A private table is linked without publishing its words.
    PublishRelaxed = "publish_relaxed",
    /// A page of a shared range is mapped without publishing what it holds.
    SharedRelaxed = "shared_relaxed",
    /// A mapper goes through a link that a reclaimer has marked and leaves the mark.
    SkipThaw = "skip_thaw",
    /// A mapper puts a new table where a tombstone stands.
    SkipRelink = "skip_relink",
    /// A reclaimer empties the word of an empty table at once, without a tombstone.
    SkipTombstone = "skip_tombstone",
    /// A reclaimer looks into the tables that it marked without waiting for who walks in them.
    SkipFreezeGrace = "skip_freeze_grace",
    /// A reclaimer gives tables back without waiting for who walks in them.
    SkipRetireGrace = "skip_retire_grace",
    /// A reclaimer takes a table with pending pages for empty.
    PendingIsEmpty = "pending_is_empty",
    /// A tombstone is not written back.
    SkipUnlinkWriteBack = "skip_unlink_write_back",
    /// The receipt of one attempt to reclaim serves for another.
    OtherAttemptsReceipt = "other_attempts_receipt",
    /// Tables are reclaimed without a flush.
    SkipReclaimFlush = "skip_reclaim_flush",
    /// The flush for reclaimed tables leaves walk caches alone.
    ReclaimLeafHint = "reclaim_leaf_hint",
    /// The flush of a detached table leaves walk caches alone.
    DetachLeafHint = "detach_leaf_hint",
    /// A split, merge or loss of permission leaves no debt.
    DropDebt = "drop_debt",
    /// The table of a split page is not written back.
    SplitNotWrittenBack = "split_not_written_back",
    /// The large page of a merge is not written back.
    MergeNotWrittenBack = "merge_not_written_back",
    /// Changed permissions are not written back.
    ProtectNotWrittenBack = "protect_not_written_back",
    /// A split page is taken out before its parts are there.
    SplitWithGap = "split_with_gap",
    /// The parts of a split page lead one part further.
    SplitShifts = "split_shifts",
    /// Merged pages are taken out before the large page is there.
    MergeWithGap = "merge_with_gap",
    /// A split, merge or change of permission owes a flush of its first page only.
    NarrowDebt = "narrow_debt",
    /// The flush that a split, merge or change of permission owes leaves walk caches alone.
    ShallowDebt = "shallow_debt",
    /// A debt is paid without a flush.
    SettleSkipsFlush = "settle_skips_flush",
    /// The second part of a range that was cut owes nothing.
    CutForgetsDebt = "cut_forgets_debt",
    /// Two ranges that are joined owe what the first one did.
    JoinForgetsDebt = "join_forgets_debt",
    /// Detached tables come back while CPUs may walk in them.
    SkipDetachGrace = "skip_detach_grace",
    /// Of detached tables only the highest comes back.
    LoseNestedTables = "lose_nested_tables",
    /// Detached tables do not come back.
    KeepDetachedTables = "keep_detached_tables",
    /// Tombstones stay when the flush that they wait for fails.
    CancelLeavesTombstones = "cancel_leaves_tombstones",
    /// Unmapping stores over a dirty bit that hardware may set.
    DirtyByStore = "dirty_by_store",
    /// A split forgets that hardware wrote through the page.
    SplitDropsDirty = "split_drops_dirty",
    /// A guard announces itself without publishing that the one before it has ended.
    PinRelaxed = "pin_relaxed",
    /// No fence follows the announcement of a guard.
    SkipPinFence = "skip_pin_fence",
    /// No fence follows when a stay passes.
    SkipPassFence = "skip_pass_fence",
    /// A guard ends without publishing that.
    UnpinRelaxed = "unpin_relaxed",
    /// No fence comes between taking something out of reach and reading the epoch.
    SkipRetireFence = "skip_retire_fence",
    /// No fence comes before the announcements are read.
    SkipAdvanceFence = "skip_advance_fence",
    /// No fence comes between noting a unit that a domain is about to reach and its first entry there.
    SkipReachFence = "skip_reach_fence",
    /// A unit counts as left when one device of several is off it.
    LeaveForAll = "leave_for_all",
    /// No fence comes between the number of a flush and the look at which units it goes to.
    SkipFlushFence = "skip_flush_fence",
    /// No fence comes between an unmap and its look at the number of flushes.
    SkipNoteFence = "skip_note_fence",
    /// A grace period is over one epoch early.
    OneEpoch = "one_epoch",
    /// A lock is let go of without publishing what was done under it.
    LockRelaxed = "lock_relaxed",
    /// A lock that is taken is taken once more.
    LockIsFree = "lock_is_free",
    /// A walk goes on behind a link without seeing what its table was made of.
    WalkRelaxed = "walk_relaxed",
    /// A leaf is written without publishing what its page holds.
    LeafRelaxed = "leaf_relaxed",
    /// A mapper thaws and relinks by a plain store.
    ThawByStore = "thaw_by_store",
    /// A mapper leaves the mark on links above the last one.
    SkipUpperThaw = "skip_upper_thaw",
    /// A new link says that it was written back before it was.
    LinkClaimsWrittenBack = "link_claims_written_back",
    /// A tombstone's table is linked again as if that had been written back.
    RelinkClaimsWrittenBack = "relink_claims_written_back",
    /// A table is detached by a load and a store.
    DetachByStore = "detach_by_store",
    /// A reclaimer marks a link by a plain store.
    FreezeByStore = "freeze_by_store",
    /// A reclaimer goes on where it was before the grace period, without walking there again.
    SkipRewalk = "skip_rewalk",
    /// A reclaimer empties a tombstone's word whatever it holds by now.
    ClearByStore = "clear_by_store",
    /// A reclaimer frees a table that was linked again.
    RetireLinked = "retire_linked",
    /// A table that was merged after a flush began is freed by its receipt.
    CoverLateMerges = "cover_late_merges",
    /// The end of a table passes detached tables by.
    EndSkipsPending = "end_skips_pending",
    /// The end of a table forgets what only the reclaimer has.
    EndSkipsLists = "end_skips_lists",
    /// A split replaces the leaf by a plain store.
    SplitByStore = "split_by_store",
    /// A merge forgets that hardware wrote through the pages.
    MergeDropsDirty = "merge_drops_dirty",
    /// Bits that hardware set in a merged table after the merge are not added to its leaf.
    SkipLateHarvest = "skip_late_harvest",
    /// An unmap does not look for such bits.
    SkipMergedHarvest = "skip_merged_harvest",
    /// A look at dirty bits leaves out the tables that merges replaced.
    LookSkipsMerges = "look_skips_merges",
    /// A leaf that is emptied where it stands says nothing of what its owner did to the table.
    EmptyRelaxed = "empty_relaxed",
    /// A change of permissions forgets that hardware wrote through the page.
    ProtectDropsDirty = "protect_drops_dirty",
    /// A domain's leaves do not force write-back though its devices' stream table entries do.
    LeavesNotForced = "leaves_not_forced",
    /// Leaves leave out the upper bits of an address of more than 48.
    DropHighAddress = "drop_high_address",
    /// Leaves have the upper bits of an address of more than 48 where shorter ones have theirs.
    HighAddressInPlace = "high_address_in_place",
    /// A stream table entry does not force write-back though the leaves that it leads to do.
    EntryNotForced = "entry_not_forced",
    /// A domain forces devices to snoop on an SMMU of whose root complexes nobody says that No_snoop makes no difference.
    NoSnoopUnasked = "no_snoop_unasked",
    /// A stream table entry does not have the unit note what is written.
    EntryNotesNothing = "entry_notes_nothing",
    /// A change of permissions keeps the very bit that hardware set, also where that is the permission to write.
    ProtectCarriesDirty = "protect_carries_dirty",
    /// Dirty bits are cleared by a load and a store.
    ClearDirtyByStore = "clear_dirty_by_store",
    /// A pending word has no mark, so that one of address 0 is zero.
    PendingWithoutKind = "pending_without_kind",

    // Free addresses.
    /// A range that goes out of a cache stays in it.
    CacheKeepsRange = "cache_keeps_range",
    /// Ranges that a cache gives back stay in it.
    FlushKeepsRanges = "flush_keeps_ranges",
    /// What a full cache hands on is lost.
    OverflowLosesRanges = "overflow_loses_ranges",
    /// Caches are not emptied before addresses are reported as used up.
    SkipEmptying = "skip_emptying",
    /// A cache that is in use counts as empty.
    ClaimedIsEmpty = "claimed_is_empty",
    /// Ranges move between caches while caches are emptied one after the other.
    DepotOpenWhileEmptying = "depot_open_while_emptying",
    /// Who holds on to a domain is added up before who ended is.
    HoldsBegunFirst = "holds_begun_first",
    /// A hold on a domain ends without publishing what was done under it.
    HoldEndsRelaxed = "hold_ends_relaxed",
    /// The end of a domain does not look whether who held it last has left its cache of addresses.
    HoldClaimNotAwaited = "hold_claim_not_awaited",

    // Flushes.
    /// Translations are not invalidated, but the wait for them is done.
    SkipIotlbFlush = "skip_iotlb_flush",
    /// A new mapping is not flushed where the unit may have cached that there was none.
    SkipSyncMap = "skip_sync_map",
    /// The flush of a new mapping leaves links to tables cached.
    LeafHintOnMap = "leaf_hint_on_map",
    /// Every flush of pages leaves links to tables cached.
    LeafHintAlways = "leaf_hint_always",
    /// A flush of pages leaves out the last; that of one page goes to its neighbour.
    FlushRangeShort = "flush_range_short",
    /// A flush names the next domain id.
    FlushWrongDomain = "flush_wrong_domain",
    /// Only the first unit that a domain reaches is flushed.
    OneUnitFlushed = "one_unit_flushed",
    /// Invalidations do not drain requests in flight.
    SkipDrain = "skip_drain",

    // The invalidation queue, and waiting for it.
    /// Invalidations that belong together may overtake each other.
    SkipFence = "skip_fence",
    /// The tail moves past the last entry of the ring, not to the first.
    TailPastRing = "tail_past_ring",
    /// A submitter always finds room in the ring.
    QueueNeverFull = "queue_never_full",
    /// All waits write one value, and any completion counts for all of them.
    ReuseStatusWord = "reuse_status_word",
    /// A submitter reserves places by a plain store.
    ReserveByStore = "reserve_by_store",
    /// A submitter publishes its entries before it fills them.
    PublishEarly = "publish_early",
    /// A submitter publishes its entries without what they say.
    PublishEntriesRelaxed = "publish_entries_relaxed",
    /// Two CPUs may write the tail register at once.
    BellIsFree = "bell_is_free",
    /// Who repairs leaves it to whoever has the bell that hardware is told again.
    BellIsNotRungAgain = "bell_is_not_rung_again",
    /// Who has rung does not look whether others have published meanwhile and gone.
    SkipSecondLook = "skip_second_look",
    /// Who lets go of the bell does not say how far it has rung.
    LetGoRelaxed = "let_go_relaxed",
    /// Who takes the bell does not look how far the last holder has rung.
    BellRelaxed = "bell_relaxed",
    /// Who does not wait for the doorbell does not say what it has published.
    LeaveRelaxed = "leave_relaxed",
    /// A reset leaves requests standing still that nobody was told of.
    ResetKeepsStalls = "reset_keeps_stalls",
    /// What a device sends is recorded although the stream table has no entry for it.
    RecordUnknownStreams = "record_unknown_streams",
    /// Entries of the event queue are emptied in memory that the unit does not snoop.
    EmptyUnsnoopedEvents = "empty_unsnooped_events",
    /// Who rings does not look whether all before its own entries is published.
    RingPastGap = "ring_past_gap",
    /// A submitter does not wait until the unit knows of a sync behind its batch.
    WaitNotForSync = "wait_not_for_sync",
    /// A head is believed that is past what the unit was given.
    BelieveHead = "believe_head",
    /// A reset takes the ring while submitters fill it.
    RestartWithoutWaiting = "restart_without_waiting",
    /// A reset that comes too late takes the bell of a ring that others use.
    RestartTakesAnyBell = "restart_takes_any_bell",
    /// What was asked of a unit counts as done at once.
    WaitNotAwaited = "wait_not_awaited",
    /// What a unit did not do in time counts as done.
    TimeoutIsSuccess = "timeout_is_success",
    /// A CPU that stops waiting, for an event or for nothing, takes what it waited for as done.
    PauseIsCompletion = "pause_is_completion",
    /// Devices behind a wedged unit keep bus mastering.
    SkipCutOff = "skip_cut_off",
    /// A unit that is shut down goes on translating.
    TranslationOnAtEnd = "translation_on_at_end",

    // What goes back to its owner.
    /// Frames that were unmapped are given back without a flush.
    FreePageEarly = "free_page_early",
    /// A domain ends although groups are attached to it.
    FreeTablesEarly = "free_tables_early",
    /// Redeeming an unmapped range loses its last frame.
    LoseLastFrame = "lose_last_frame",
    /// Redeeming an unmapped range gives the frames one page further on.
    RedeemWrongRange = "redeem_wrong_range",

    /// A receipt opens what was unmapped after its flush began.
    OldReceiptOpens = "old_receipt_opens",
    /// A receipt opens what its flush did not cover.
    AnySpanOpens = "any_span_opens",

    // The DMA API.
    /// A buffer is mapped at addresses that its device cannot say.
    IgnoreDmaMask = "ignore_dma_mask",
    /// An untrusted device gets whole pages of buffers that are not page-whole.
    BounceSkipped = "bounce_skipped",
    /// A bounce page gets all of the page that it stands in for.
    BounceCopiesWholePage = "bounce_copies_whole_page",
    /// A bounce page keeps what the last buffer left beside the bytes of the next.
    BounceKeepsOldBytes = "bounce_keeps_old_bytes",
    /// All of a bounce page is copied back, over what shares the page with the buffer.
    BounceCopiesBackWholePage = "bounce_copies_back_whole_page",
    /// Deferred addresses are free again before the flush.
    DeferredReleasesRangeEarly = "deferred_releases_range_early",
    /// Caches are left alone where a device does not snoop.
    SyncSkipsCaches = "sync_skips_caches",

    /// What devices send does not snoop in a domain that was asked for it.
    SnoopNotForced = "snoop_not_forced",

    // Fault records.
    /// A record is given back to the unit before all of it was read.
    ClearFaultBeforeReading = "clear_fault_before_reading",
    /// That faults were lost is neither told nor cleared, so that a unit records no more.
    KeepFaultOverflow = "keep_fault_overflow",
    /// A unit's interrupt is let through before it is said where it goes.
    UnmaskBeforeAddress = "unmask_before_address",
    /// What was in a fault log before its interrupt was turned on is not looked for.
    SkipLookAfterRoute = "skip_look_after_route",

    // What only SMMUs have.
    /// An SMMU is turned off although requests pass it then.
    LeaveGateOpen = "leave_gate_open",
    /// The gate is told to close without the bit that makes an SMMU look.
    GateWithoutUpdate = "gate_without_update",
    /// The gate of an SMMU that is shut down is opened, as power-on leaves it.
    GateOpenAtEnd = "gate_open_at_end",
    /// Nobody waits until an SMMU acknowledges what was turned on or off.
    ControlNotAwaited = "control_not_awaited",
    /// An SMMU translates before it forgot what it cached.
    EnableBeforeForgetting = "enable_before_forgetting",
    /// Errors are acknowledged that nobody has seen.
    AcknowledgeUnseenErrors = "acknowledge_unseen_errors",
    /// A reset leaves the error for which the command queue stopped.
    LeaveCommandError = "leave_command_error",
    /// The word that makes a stream table entry live is written first.
    StreamWordZeroFirst = "stream_word_zero_first",
    /// The steps in which a stream table entry changes have no sync between them.
    StreamStepsWithoutSync = "stream_steps_without_sync",
    /// Stream table entries, and queues, are not written back.
    SkipStreamWriteBack = "skip_stream_write_back",
    /// That a stream aborted is not forgotten when it is bound.
    SkipStreamForget = "skip_stream_forget",
    /// The entry of an unbound stream is not forgotten.
    UnbindKeepsStream = "unbind_keeps_stream",
    /// Translations of an unbound stream's domain are not forgotten.
    UnbindKeepsTranslations = "unbind_keeps_translations",
    /// Translations of an unbound stream may be forgotten before its entry is.
    UnbindWithoutSync = "unbind_without_sync",
    /// That there was no array of entries is not forgotten when one is linked.
    SkipArrayForget = "skip_array_forget",
    /// The word that makes a context descriptor valid is written before the others are forgotten.
    ContextWordZeroFirst = "context_word_zero_first",
    /// The context descriptor of an unbound substream is not forgotten.
    UnbindKeepsContext = "unbind_keeps_context",
    /// Translations of an unbound substream's domain are not forgotten.
    UnbindContextKeepsTranslations = "unbind_context_keeps_translations",
    /// An invalidation names the next VMID.
    FlushOtherVmid = "flush_other_vmid",
    /// An invalidation of single addresses leaves out the last.
    SkipLastAddress = "skip_last_address",
    /// A sync counts as completed when what is before it was read.
    SyncByConsumption = "sync_by_consumption",
    /// Commands are not written back.
    SkipCommandWriteBack = "skip_command_write_back",
    /// The index of commands is written without its wrap bit.
    DropWrapBit = "drop_wrap_bit",
    /// Events that were taken are not given back to an SMMU.
    KeepEvents = "keep_events",
    /// An overflow of the event queue is not acknowledged.
    KeepOverflow = "keep_overflow",
    /// An entry of the event queue that an SMMU did not write is told as an event.
    BelieveEmptyEvents = "believe_empty_events",
    /// A live entry becomes another one by way of one that aborts, where one store would do.
    SwitchThroughAbort = "switch_through_abort",
    /// What a unit made by the entry that a live one was is not forgotten.
    SwitchKeepsTranslations = "switch_keeps_translations",
    /// An index of records is believed that says that there are more than the queue has room for.
    BelieveAnyIndex = "believe_any_index",
    /// Interrupts are said to be on, and are not.
    LeaveInterruptsOff = "leave_interrupts_off",
    /// Where the messages of an interrupt go changes while it is on.
    RerouteWhileOn = "reroute_while_on",
    /// A flush does not reach the TLBs of devices.
    SkipDeviceForget = "skip_device_forget",
    /// A device is told to forget before its unit has forgotten.
    DeviceForgetsFirst = "device_forgets_first",
    /// Of several pages a device is told to forget the first alone.
    DeviceForgetsOnePage = "device_forgets_one_page",
    /// Another device than the one with the TLB is told to forget.
    ForgetOtherDevice = "forget_other_device",
    /// Translated requests of a device pass after its TLB was closed.
    CloseKeepsEntry = "close_keeps_entry",
    /// A device's TLB is opened with what it holds of before.
    LeaveOldTranslations = "leave_old_translations",
    /// A device is told to ask for translations before its entry lets it.
    AskBeforeEntry = "ask_before_entry",
    /// Requests that say they are translated pass unchecked.
    TranslatedUnchecked = "translated_unchecked",
    /// Stalled requests are not answered.
    SkipResume = "skip_resume",
    /// Requests for pages are not answered.
    SkipPageResponse = "skip_page_response",
    /// Syncs ask for events of SMMUs that send none.
    AskAnyUnitForEvents = "ask_any_unit_for_events",
    /// Page sizes change under a device's eyes on every SMMU.
    ResizeAnywhere = "resize_anywhere",
    /// Leaves are made without the access flag.
    ClearAccessFlag = "clear_access_flag",
    /// A stream's entry leads to its context descriptor before that is written.
    ContextAfterEntry = "context_after_entry",
    /// Invalidations of first stages name a guest that is none.
    FirstStageOtherVmid = "first_stage_other_vmid",
    /// Leaves of first stages are kept for every ASID.
    LeafForEveryAsid = "leaf_for_every_asid",
    /// Leaves of first stages are for privileged requests alone.
    LeafForPrivileged = "leaf_for_privileged",
    /// A user's first stage is bound without the second stage of its parent.
    NestedWithoutParent = "nested_without_parent",
    /// A flush of a parent names pages of its own while a user's first stage stands on it.
    NestedFlushByPages = "nested_flush_by_pages",
    /// A user's invalidation names the next VMID.
    UserCommandOtherVmid = "user_command_other_vmid",
    /// A user's context descriptors are kept although it asks to have them forgotten.
    UserContextsKept = "user_contexts_kept",
    /// Of a user's streams as many have their contexts forgotten as go into one batch.
    FirstBatchAlone = "first_batch_alone",
    /// A stream that is made quiet goes on by what its unit has cached.
    RereadForgetsNothing = "reread_forgets_nothing",
    /// What is bound while its group is cut off is not made quiet.
    LateBoundStaysLoud = "late_bound_stays_loud",
    /// Entries of a group that was cut off are read anew for each record of it that a look finds.
    RereadForEachRecord = "reread_for_each_record",
    /// An entry that a unit could not be asked to read anew is not asked for again.
    RereadOnce = "reread_once",
    /// What firmware's tables had a unit record is told as somebody's.
    KeepFirmwaresEvents = "keep_firmwares_events",
    /// A unit that does not wake keeps those behind it asleep.
    WakeStopsAtTheFirst = "wake_stops_at_the_first",
    /// A user's first stage is put on its parent while units may hold what is out of the parent's tables already.
    NestedOnWhatIsHeld = "nested_on_what_is_held",
    /// An entry that aborts already is not read anew, whether or not the unit has read that.
    QuietOnceIsQuiet = "quiet_once_is_quiet",
    /// Of a page that was written a guest is told the first 4 KiB.
    MarkFirstPage = "mark_first_page",
    /// Faults of a user's first stage go on when its device is cut off.
    QuietSkipsNested = "quiet_skips_nested",
    /// Hardware goes on past what stands unanswered before anybody knows that it stood.
    ResumeBeforeHold = "resume_before_hold",
    /// A command that was taken out of a unit's queue, since the unit refuses it, counts as done.
    RefusedCountsAsDone = "refused_counts_as_done",
    /// A command that a unit refuses is taken out before the unit has read it once more.
    RefusedIsNotReadAgain = "refused_is_not_read_again",
    /// A device that answers only when it is asked alone is asked again and again.
    AloneIsEnough = "alone_is_enough",
    /// A device that does not say that it forgot is taken to have forgotten.
    SilentIsBelieved = "silent_is_believed",
    /// A device that does not answer goes on by its entry.
    SilentKeepsEntry = "silent_keeps_entry",
    /// A device that does not answer goes on by what its unit has cached of its entry.
    SilentEntryNotReread = "silent_entry_not_reread",
    /// A device that did not forget what it holds of before is let ask all the same.
    SilentIsOpened = "silent_is_opened",
    /// Devices that do not answer are asked by all that stands in the queue, one time-out after the other.
    MendAsksAll = "mend_asks_all",
    /// Who waits for a queue that is mended gives up in the middle of that.
    MendingIsNotWaitedFor = "mending_is_not_waited_for",
    /// A CPU that finds out which devices do not answer holds back what is retired for all of that time.
    MenderStays = "mender_stays",
    /// A reset waits for devices that were asked before it.
    ResetHeedsOldAnswers = "reset_heeds_old_answers",
    /// A device that did not answer before it was let ask is told of no further flush.
    RefusedIsForgotten = "refused_is_forgotten",
    /// A device goes on asking for translations as firmware let it.
    LeaveAtsOn = "leave_ats_on",
    /// A function goes on reaching memory past its unit (CXL.cache) as whoever had it before let it.
    LeaveCxlCacheOn = "leave_cxl_cache_on",
    /// Whether a function reaches memory past its unit (CXL.cache) is not asked when its group is attached.
    CxlCacheNotAsked = "cxl_cache_not_asked",
    /// A reset strikes out a device that is being let ask just then.
    ResetForgetsOpening = "reset_forgets_opening",
    /// An entry changes by stores that take nothing of what others did to it meanwhile.
    UpdateByStore = "update_by_store",
    /// A group that is cut off goes on by what its devices keep.
    QuietKeepsAsking = "quiet_keeps_asking",
    /// The short way down goes through whatever stands in a word.
    ShortWayComparesNothing = "short_way_compares_nothing",
    /// A mapper's short way down goes through links that a reclaimer has marked.
    ShortWaySkipsMarks = "short_way_skips_marks",
    /// The parts of a split page lie as far apart as those of a table of 4 KiB pages.
    SplitBySmallPages = "split_by_small_pages",
    /// The invalidation of a range counts in pages of 4 KiB.
    RangeBySmallPages = "range_by_small_pages",
    /// What a device wrote of a page counts as a page of a table of 4 KiB pages.
    WrittenBySmallPages = "written_by_small_pages",
    /// The upper half of the address of a fault event's message stays what it was.
    UpperAddressKept = "upper_address_kept",
    /// A fault event's message is of the format that interrupt remapping translates.
    RemappableMessage = "remappable_message",
}
