// One processing element (PE) of the weight-stationary array, with a fault on each of its nets.
//
// Every net with a fault site has three masks: `invert` (an upset, in this cycle), `clear` (stuck at 0) and `set` (stuck at 1).
// A value v on it becomes ((v ^ invert) & ~clear) | set.

module pe #(
    parameter int WEIGHT_BITS = 8,
    parameter int ACT_BITS = 8,
    parameter int ACT_SIGNED = 1,
    parameter int ACC_BITS = 32,
    parameter int MULTIPLIER_LOCATIONS = 1,
    localparam int PRODUCT_BITS = WEIGHT_BITS + ACT_BITS
) (
    input logic clock,
    input logic reset,  // every register is 0 in the next cycle

    // Control of all PEs at once: serial timing.
    input logic stream,     // clock the datapath
    input logic load,       // shift the load chain
    input logic load_last,  // with `load`: the stationary register takes the weight that arrives

    // Control that travels east with the activations: double-buffered timing.
    input  logic load_west,    // shift the load chain
    input  logic switch_west,  // the stationary register takes what the shift register holds at the end of this cycle
    output logic load_east,
    output logic switch_east,

    input  logic [WEIGHT_BITS-1:0] weight_north,
    output logic [WEIGHT_BITS-1:0] weight_south,      // the shift register
    input  logic [   ACT_BITS-1:0] activation_west,
    output logic [   ACT_BITS-1:0] activation_east,   // the activation register
    input  logic [   ACC_BITS-1:0] psum_north,
    output logic [   ACC_BITS-1:0] psum_south,        // the partial sum register
    output logic [   ACC_BITS-1:0] psum_leaving,      // what that register takes at the end of a streaming cycle

    input logic bypass,  // pass the partial sum on unchanged
    input logic [WEIGHT_BITS-1:0] weight_invert,
    input logic [WEIGHT_BITS-1:0] weight_clear,
    input logic [WEIGHT_BITS-1:0] weight_set,
    input logic [WEIGHT_BITS-1:0] weight_load_invert,
    input logic [WEIGHT_BITS-1:0] weight_load_clear,
    input logic [WEIGHT_BITS-1:0] weight_load_set,
    input logic [ACT_BITS-1:0] activation_invert,
    input logic [ACT_BITS-1:0] activation_clear,
    input logic [ACT_BITS-1:0] activation_set,
    input logic [PRODUCT_BITS-1:0] product_invert,
    input logic [PRODUCT_BITS-1:0] product_clear,
    input logic [PRODUCT_BITS-1:0] product_set,
    input logic [ACC_BITS-1:0] psum_invert,
    input logic [ACC_BITS-1:0] psum_clear,
    input logic [ACC_BITS-1:0] psum_set,
    input logic [MULTIPLIER_LOCATIONS-1:0] multiplier_invert,
    input logic [MULTIPLIER_LOCATIONS-1:0] multiplier_clear,
    input logic [MULTIPLIER_LOCATIONS-1:0] multiplier_set
);

  // The load chain. The shift register is apart from the stationary one, so weights can arrive while others are in use.
  logic [WEIGHT_BITS-1:0] weight_stored;
  wire [WEIGHT_BITS-1:0] weight_loaded = ((weight_north ^ weight_load_invert) & ~weight_load_clear) | weight_load_set;
  wire [WEIGHT_BITS-1:0] shift_next = (load | load_west) ? weight_loaded : weight_south;
  wire take_weight = (load & load_last) | switch_west;
  // An upset inverts the stored bit itself: it stays inverted until another weight is taken.
  wire [WEIGHT_BITS-1:0] weight_kept = weight_stored ^ weight_invert;

  always_ff @(posedge clock) begin
    if (reset) begin
      weight_south <= '0;
      weight_stored <= '0;
      load_east <= 1'b0;
      switch_east <= 1'b0;
    end else begin
      weight_south <= shift_next;
      weight_stored <= take_weight ? shift_next : weight_kept;
      load_east <= load_west;
      switch_east <= switch_west;
    end
  end

  // The datapath.
  wire [WEIGHT_BITS-1:0] weight = (weight_kept & ~weight_clear) | weight_set;
  wire [ACT_BITS-1:0] activation = ((activation_west ^ activation_invert) & ~activation_clear) | activation_set;
  wire [PRODUCT_BITS-1:0] multiplied;
  wire signed [PRODUCT_BITS-1:0] product = ((multiplied ^ product_invert) & ~product_clear) | product_set;
  wire [ACC_BITS-1:0] summed = psum_north + ACC_BITS'(product);
  wire [ACC_BITS-1:0] psum = ((summed ^ psum_invert) & ~psum_clear) | psum_set;
  assign psum_leaving = bypass ? psum_north : psum;

  multiplier #(
      .WEIGHT_BITS(WEIGHT_BITS),
      .ACT_BITS(ACT_BITS),
      .ACT_SIGNED(ACT_SIGNED),
      .LOCATIONS(MULTIPLIER_LOCATIONS)
  ) multiplier (
      .weight(weight),
      .activation(activation),
      .invert(multiplier_invert),
      .clear(multiplier_clear),
      .set(multiplier_set),
      .product(multiplied)
  );

  always_ff @(posedge clock) begin
    if (reset) begin
      activation_east <= '0;
      psum_south <= '0;
    end else if (stream) begin
      activation_east <= activation;
      psum_south <= psum_leaving;
    end
  end

endmodule
